/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Watchpoints of a debugger outside the guest: the guest's debug registers are not touched, and it
 * cannot see them. They are traps as the processor's own: the access is done, then the engine stops.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "uc_priv.h"

/*
 * Watch `len` bytes (1, 2, 4 or 8, naturally aligned) at guest virtual address `gva`: `kinds` is 1 for
 * loads, 2 for stores, 3 for both. On a hit the gVA accessed goes to hit[0] and the kind of access to
 * hit[1] (1 or 2), and the engine stops behind the instruction. All translations are to be dropped
 * after a change. Between runs only.
 */
UNICORN_EXPORT int32_t memvirt_watch(uc_engine *uc, uint64_t gva, uint64_t len, int32_t kinds,
                                     int64_t *hit);
int32_t memvirt_watch(uc_engine *uc, uint64_t gva, uint64_t len, int32_t kinds, int64_t *hit)
{
    CPUWatchpoint *watchpoint;

    uc->memvirt_watch_hit = hit;
    return cpu_watchpoint_insert(uc->cpu, gva, len, BP_GDB | (kinds & BP_MEM_ACCESS),
                                 &watchpoint);
}

/* Forget all of them. */
UNICORN_EXPORT void memvirt_unwatch(uc_engine *uc);
void memvirt_unwatch(uc_engine *uc)
{
    CPUWatchpoint *watchpoint, *next;

    QTAILQ_FOREACH_SAFE(watchpoint, &uc->cpu->watchpoints, entry, next) {
        if (watchpoint->flags & BP_GDB) {
            cpu_watchpoint_remove_by_ref(uc->cpu, watchpoint);
        }
    }
}

/* True if the watchpoint that was hit is the debugger's: the engine stops, the guest sees nothing. */
bool memvirt_watched(CPUState *cpu);
bool memvirt_watched(CPUState *cpu)
{
    CPUWatchpoint *hit = cpu->watchpoint_hit;

    if (!(hit->flags & BP_GDB)) {
        return false;
    }
    cpu->uc->memvirt_watch_hit[0] = hit->hitaddr;
    cpu->uc->memvirt_watch_hit[1] = hit->flags & BP_WATCHPOINT_HIT_READ ? BP_MEM_READ : BP_MEM_WRITE;
    hit->flags &= ~BP_WATCHPOINT_HIT;
    cpu->watchpoint_hit = NULL;
    cpu->uc->stop_request = true;
    return true;
}
