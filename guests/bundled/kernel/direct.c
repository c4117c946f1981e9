/* SPDX-License-Identifier: Apache-2.0 */
/* The window through which the kernel sees physical memory. */
#include "kernel.h"

static u64 base = KERNEL_BASE; /* the boot tables reach 1 GiB from there */

void *direct(u64 physical)
{
    return (void *)(base + physical);
}

void direct_map_ready(void)
{
    base = DIRECT_BASE;
}
