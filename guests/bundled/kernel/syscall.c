/* SPDX-License-Identifier: Apache-2.0 */
/* System calls. Pointers from ring 3 are checked, and read and written through fix-ups only. */
#include "kernel.h"

static s64 call_print(u64 text, u64 length)
{
    char line[192];
    if (length > sizeof(line))
        return ERROR_INVALID;
    if (!copy_from_user(line, text, length))
        return ERROR_BAD_ADDRESS;
    process_print(line, length);
    return 0;
}

static s64 call_fail(u64 address)
{
    struct failure failure;
    if (!copy_from_user(&failure, address, sizeof(failure)))
        return ERROR_BAD_ADDRESS;
    failure.what[sizeof(failure.what) - 1] = 0;
    report_failure(&failure);
}

static s64 call_wait(u64 pid)
{
    for (u32 slot = 1; slot < PROCESS_COUNT; slot++) {
        struct process *child = &processes[slot];
        if (child->state != PROCESS_FREE && child->pid == pid && child->parent == current->slot)
            return (s64)process_collect(child);
    }
    return ERROR_INVALID;
}

static bool time_has_come(struct process *process)
{
    return ticks >= process->condition_value;
}

static u64 barrier_generation;
static u64 barrier_present;

static bool barrier_has_opened(struct process *process)
{
    return barrier_generation != process->condition_value;
}

static s64 call_barrier(u64 count)
{
    if (++barrier_present >= count) {
        barrier_present = 0;
        barrier_generation++;
    } else {
        block_until(barrier_has_opened, barrier_generation);
    }
    return 0;
}

static s64 call_sum(u64 buffer, u64 words, u64 result)
{
    u64 chunk[32], sum = 0;
    if (words > USER_TOP / 8)
        return ERROR_INVALID;
    for (u64 done = 0; done < words;) {
        u64 count = words - done < 32 ? words - done : 32;
        if (!copy_from_user(chunk, buffer + done * 8, count * 8))
            return ERROR_BAD_ADDRESS;
        for (u64 i = 0; i < count; i++)
            sum += chunk[i];
        done += count;
    }
    return copy_to_user(result, &sum, sizeof(sum)) ? 0 : ERROR_BAD_ADDRESS;
}

static s64 call_store(u64 buffer, u64 words, u64 value)
{
    if (words > USER_TOP / 8)
        return ERROR_INVALID;
    for (u64 i = 0; i < words; i++)
        if (!copy_to_user(buffer + i * 8, &value, sizeof(value)))
            return ERROR_BAD_ADDRESS;
    return 0;
}

static s64 call_arm_probe(u64 rip, u64 rsp)
{
    if (!user_range_valid(rip, 1) || !user_range_valid(rsp, 1))
        return ERROR_INVALID;
    current->probe_rip = rip;
    current->probe_rsp = rsp;
    current->fault = (struct fault_record){.vector = NO_FAULT};
    return 0;
}

static s64 call_probe_result(u64 to)
{
    current->probe_rip = 0;
    return copy_to_user(to, &current->fault, sizeof(current->fault)) ? 0 : ERROR_BAD_ADDRESS;
}

static s64 dispatch(struct frame *f)
{
    struct process *p = current;
    u64 a = f->rdi, b = f->rsi, c = f->rdx, d = f->r10;
    switch (f->rax) {
    case CALL_EXIT:
        process_end(a & 0xff);
    case CALL_PRINT:
        return call_print(a, b);
    case CALL_FAIL:
        return call_fail(a);
    case CALL_FORK:
        return process_fork(f);
    case CALL_WAIT:
        return call_wait(a);
    case CALL_YIELD:
        schedule();
        return 0;
    case CALL_SLEEP:
        block_until(time_has_come, ticks + a);
        return 0;
    case CALL_PID:
        return p->pid;
    case CALL_MAP:
        return memory_map(p, a, b, c, d);
    case CALL_UNMAP:
        return memory_unmap(p, a, b, c);
    case CALL_PROTECT:
        return memory_protect(p, a, b, c, d);
    case CALL_ALIAS:
        return memory_alias(p, a, b, c, d);
    case CALL_EXCHANGE:
        return memory_exchange(p, a, b, c, d);
    case CALL_EXCHANGE_TABLES:
        return memory_exchange_tables(p, a, b, c, d);
    case CALL_PROTECT_TABLE:
        return memory_protect_table(p, a, b, c, d);
    case CALL_SPLIT:
        return memory_split(p, a, b);
    case CALL_COLLAPSE:
        return memory_collapse(p, a, b);
    case CALL_ARM_PROBE:
        return call_arm_probe(a, b);
    case CALL_PROBE_RESULT:
        return call_probe_result(a);
    case CALL_BARRIER:
        return call_barrier(a);
    case CALL_PIPE_WRITE:
        return pipe_transfer(a, b, c, true);
    case CALL_PIPE_READ:
        return pipe_transfer(a, b, c, false);
    case CALL_SUM:
        return call_sum(a, b, c);
    case CALL_STORE:
        return call_store(a, b, c);
    case CALL_MAPPING:
        return memory_mapping(p, a);
    case CALL_FREE_PAGES:
        return (s64)pages_free();
    case CALL_POISON:
        return memory_poison(p, a, b, c);
    default:
        return ERROR_INVALID;
    }
}

void syscall_dispatch(struct frame *frame)
{
    current->repeated_faults = 0;
    frame->rax = (u64)dispatch(frame);
}
