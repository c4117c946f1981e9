/* SPDX-License-Identifier: Apache-2.0 */
/* What several workloads need: a share of memory, a program run to its end. */
#include "workloads.h"

#define RESERVE_PAGES 48 /* stacks, roots, tables beside the data's own */

/* That share of all memory, or what is left of it. */
u64 pages_of_percent(u64 percent)
{
    u64 wanted = pages_total() * percent / 100, left = pages_free();
    u64 reserve = RESERVE_PAGES + wanted / 256;
    u64 most = left > reserve ? left - reserve : 1;
    return wanted > most ? most : wanted ? wanted : 1;
}

/* One process alone; its lines come out as they are written. */
void run_program(u32 program, const u64 arguments[5])
{
    u64 status = process_run(program, arguments);
    if (status)
        fail("a process did not exit well", program, 0, status);
}
