/* SPDX-License-Identifier: Apache-2.0 */
/* The workloads' kernel halves: they read options, size the work, start and collect processes. */
#ifndef WORKLOADS_H
#define WORKLOADS_H

#include "kernel.h"

void run_workload(void);
u64 pages_of_percent(u64 percent);
void run_program(u32 program, const u64 arguments[5]);
void workload_fill(void);
void workload_random(void);
void workload_identical(void);
void workload_idle(void);
void workload_churn(void);
void workload_processes(void);
void workload_faults(void);
void workload_selfmod(void);
void workload_triple(void);
void workload_panic(void);
void workload_spin(void);

#endif
