/* SPDX-License-Identifier: Apache-2.0 */
/* Find the workload by name, and run it. */
#include "workloads.h"

struct workload {
    const char *name;
    void (*run)(void);
};

static void workload_all(void);

static const struct workload workloads[] = {
    {"all", workload_all},
    {"fill", workload_fill},
    {"random", workload_random},
    {"identical", workload_identical},
    {"idle", workload_idle},
    {"churn", workload_churn},
    {"processes", workload_processes},
    {"faults", workload_faults},
    {"selfmod", workload_selfmod},
    {"triple", workload_triple},
    {"panic", workload_panic},
    {"spin", workload_spin},
};

/* No page may be lost between two workloads. */
static void run_checked(const struct workload *workload)
{
    u64 before = pages_free();
    workload->run();
    if (pages_free() != before)
        fail("pages leaked by a workload", 0, before, pages_free());
}

static void workload_all(void)
{
    static const char *const names[] = {"fill",   "random", "identical", "processes",
                                        "churn",  "faults", "selfmod",   "idle"};
    for (u32 i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        for (u32 j = 0; j < sizeof(workloads) / sizeof(workloads[0]); j++)
            if (text_equal(names[i], workloads[j].name))
                run_checked(&workloads[j]);
}

void run_workload(void)
{
    char name[32];
    option_text("workload", "all", name, sizeof(name));
    print("workload %s", name);
    for (u32 i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++) {
        if (text_equal(name, workloads[i].name)) {
            run_checked(&workloads[i]);
            return;
        }
    }
    fail("no such workload", 0, 0, 0);
}
