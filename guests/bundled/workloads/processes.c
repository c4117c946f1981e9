/* SPDX-License-Identifier: Apache-2.0 */
/* identical, processes, churn, selfmod: several processes at once, or one that forks. */
#include "workloads.h"

#define MOST_PROCESSES 16
#define PROCESS_PAGES 24 /* stack, root, tables of one process */
#define TREE_PROCESSES 7 /* a process of `processes` with its fork tree */

/* Start `count` processes, let them run, show their lines in order. Argument 0 is the number. */
static void run_side_by_side(u32 program, u64 count, u64 arguments[5])
{
    struct process *started[MOST_PROCESSES];
    for (u64 i = 0; i < count; i++) {
        arguments[0] = i;
        started[i] = process_start(program, arguments, false);
    }
    for (u64 i = 0; i < count; i++) {
        u64 status = process_collect(started[i]);
        if (status)
            fail("a process did not exit well", i, 0, status);
    }
}

/* As many as asked for, as far as table space and memory allow. */
static u64 process_count(u64 pages_each)
{
    u64 count = option_number("processes", 8);
    u64 most = pages_free() * 3 / 4 / pages_each;
    if (count > MOST_PROCESSES)
        count = MOST_PROCESSES;
    if (count > most)
        count = most;
    return count ? count : 1;
}

/* By default a fixed count of pages, less if memory is small. */
void workload_identical(void)
{
    u64 pages = option_number("pages", 0);
    if (!pages) {
        u64 room = pages_free() / 16;
        pages = room > 256 ? 256 : room > PROCESS_PAGES ? room - PROCESS_PAGES : 8;
    }
    u64 count = process_count(pages + PROCESS_PAGES);
    u64 arguments[5] = {0, count, pages, option_number("rounds", 3), option_number("hold", 5)};
    run_side_by_side(PROGRAM_IDENTICAL, count, arguments);
    print("identical: %u processes agree on %u pages each", count, pages);
}

void workload_processes(void)
{
    u64 pages = option_number("pages", 32);
    u64 count = process_count(pages + TREE_PROCESSES * (PROCESS_PAGES + 8));
    u64 arguments[5] = {0, count, option_number("rounds", 10), option_number("seed", 0x5eed),
                        pages};
    run_side_by_side(PROGRAM_PROCESSES, count, arguments);
    print("processes: %u processes verified", count);
}

void workload_churn(void)
{
    u64 arguments[5] = {option_number("seed", 0x5eed), option_number("rounds", 40),
                        blocks_assured() >= 4};
    run_program(PROGRAM_CHURN, arguments);
}

void workload_selfmod(void)
{
    u64 arguments[5] = {option_number("rounds", 64), option_number("seed", 0x5eed)};
    run_program(PROGRAM_SELFMOD, arguments);
}
