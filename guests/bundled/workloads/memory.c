/* SPDX-License-Identifier: Apache-2.0 */
/* fill, random, idle: how much, and with what. */
#include "workloads.h"

#define DEFAULT_SEED 0x5eed

/* How many of 128 words of a page differ from the others; by default all do. */
static u64 varied_words(void)
{
    u64 percent = option_number("varied", 100);
    return percent >= 100 ? 128 : percent * 128 / 100;
}

void workload_fill(void)
{
    u64 pages = pages_of_percent(option_number("percent", 80));
    u64 flags = option_number("large", 0) ? MAP_LARGE : 0;
    u64 arguments[5] = {option_number("seed", DEFAULT_SEED), pages, option_number("passes", 2),
                        flags, varied_words()};
    run_program(PROGRAM_FILL, arguments);
}

void workload_random(void)
{
    u64 flags = option_number("large", 0) ? MAP_LARGE : 0;
    u64 pages = pages_of_percent(option_number("percent", 25));
    u64 arguments[5] = {option_number("seed", DEFAULT_SEED), pages,
                        option_number("operations", 2000000), flags};
    run_program(PROGRAM_RANDOM, arguments);
}

void workload_idle(void)
{
    u64 pages = pages_of_percent(option_number("percent", 25));
    char name[32];
    option_text("workload", "all", name, sizeof(name));
    u64 ticks_wanted = option_number("ticks", text_equal(name, "idle") ? 200 : 20);
    u64 arguments[5] = {option_number("seed", DEFAULT_SEED), pages, ticks_wanted, varied_words()};
    run_program(PROGRAM_IDLE, arguments);
}
