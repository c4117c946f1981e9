/* SPDX-License-Identifier: Apache-2.0 */
/* From the entry code to the verdict. */
#include "kernel.h"
#include "workloads.h"

_Noreturn void kernel_main(u64 protocol, u64 information);

_Noreturn void kernel_main(u64 protocol, u64 information)
{
    serial_initialize();
    boot_info_read((u32)protocol, information);
    paging_initialize();
    interrupts_initialize();
    memory_initialize();
    processes_initialize();
    balloon_initialize();
    timer_initialize();
    if (option_number("used", 0))
        physical_soil();
    print("%u pages of memory", pages_total());
    run_workload();
    report_success();
}
