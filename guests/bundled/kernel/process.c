/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes and the round-robin scheduler. Slot 0 is the kernel's own thread: it starts the
 * workloads and collects their processes. The kernel is not preemptible: interrupts are off in it,
 * except where it waits for one.
 */
#include "kernel.h"
#include "processor.h"

#define STACK_CANARY 0x6b636174735f6bu
#define LOG_SIZE PAGE_SIZE

struct process processes[PROCESS_COUNT];
struct process *current;
static u32 next_pid = 1;

void switch_context(u64 *save, u64 load);

void processes_initialize(void)
{
    current = &processes[0];
    current->state = PROCESS_READY;
    current->root = kernel_root;
}

static bool is_runnable(struct process *process)
{
    if (process->state == PROCESS_BLOCKED && process->condition(process))
        process->state = PROCESS_READY;
    return process->state == PROCESS_READY;
}

static void switch_to(struct process *next)
{
    struct process *previous = current;
    if (next == previous)
        return;
    current = next;
    if (next->stack_page) {
        ASSERT(*(u64 *)direct(next->stack_page) == STACK_CANARY);
        set_kernel_stack((u64)direct(next->stack_page) + PAGE_SIZE);
    }
    if (read_cr3() != next->root)
        write_cr3(next->root);
    switch_context(&previous->saved_rsp, next->saved_rsp);
}

/* Give the processor to the next process that can run; returns when it is our turn again. */
void schedule(void)
{
    for (;;) {
        for (u32 i = 1; i <= PROCESS_COUNT; i++) {
            struct process *next = &processes[(current->slot + i) % PROCESS_COUNT];
            if (is_runnable(next)) {
                switch_to(next);
                return;
            }
        }
        wait_for_interrupt();
    }
}

void block_until(bool (*condition)(struct process *), u64 value)
{
    current->condition = condition;
    current->condition_value = value;
    current->state = PROCESS_BLOCKED;
    schedule();
}

static struct process *new_process(void)
{
    for (u32 slot = 1; slot < PROCESS_COUNT; slot++) {
        struct process *process = &processes[slot];
        if (process->state != PROCESS_FREE)
            continue;
        memset(process, 0, sizeof(*process));
        process->root = paging_new_root();
        process->stack_page = page_allocate();
        if (!process->root || !process->stack_page)
            fail("no memory for a process", slot, 1, 0);
        *(u64 *)direct(process->stack_page) = STACK_CANARY;
        process->slot = slot;
        process->parent = current->slot;
        process->pid = next_pid++;
        memory_start(process);
        return process;
    }
    fail("too many processes", 0, PROCESS_COUNT, PROCESS_COUNT);
}

/* Lay out the new kernel stack so that the first switch to it returns to user mode. */
static void prepare_stack(struct process *process, const struct frame *frame)
{
    u64 top = (u64)direct(process->stack_page) + PAGE_SIZE;
    struct frame *copy = (struct frame *)top - 1;
    *copy = *frame;
    u64 *stack = (u64 *)copy;
    *--stack = (u64)return_to_user;
    for (int i = 0; i < 6; i++) /* what switch_context pops */
        *--stack = 0;
    process->saved_rsp = (u64)stack;
    process->state = PROCESS_READY;
}

struct process *process_start(u32 program, const u64 arguments[5], bool direct_print)
{
    struct process *process = new_process();
    process->direct_print = direct_print;
    struct frame frame = {
        .rdi = program,
        .rsi = arguments[0],
        .rdx = arguments[1],
        .rcx = arguments[2],
        .r8 = arguments[3],
        .r9 = arguments[4],
        .rip = USER_IMAGE,
        .cs = USER_CS,
        .rflags = FLAG_INTERRUPT | 2,
        .rsp = USER_STACK_TOP,
        .ss = USER_SS,
    };
    prepare_stack(process, &frame);
    return process;
}

s64 process_fork(const struct frame *frame)
{
    struct process *child = new_process();
    memory_fork(current, child);
    struct frame copy = *frame;
    copy.rax = 0;
    prepare_stack(child, &copy);
    return child->pid;
}

/* The memory goes at once; the stack we stand on and the status stay until collected. */
_Noreturn void process_end(u64 status)
{
    write_cr3(kernel_root);
    memory_free(current);
    current->root = kernel_root;
    current->status = status;
    current->state = PROCESS_ENDED;
    schedule();
    __builtin_unreachable();
}

static bool has_ended(struct process *waiting)
{
    return processes[waiting->condition_value].state == PROCESS_ENDED;
}

u64 process_collect(struct process *process)
{
    if (process->state != PROCESS_ENDED)
        block_until(has_ended, process->slot);
    if (process->log) {
        serial_write(process->log, process->log_length);
        page_release((u64)process->log - DIRECT_BASE);
    }
    page_release(process->stack_page);
    process->state = PROCESS_FREE;
    return process->status;
}

u64 process_run(u32 program, const u64 arguments[5])
{
    return process_collect(process_start(program, arguments, true));
}

/* Lines of processes that run side by side are kept: their order must not depend on time. */
void process_print(const char *text, u64 length)
{
    if (current->direct_print) {
        serial_write(text, length);
        return;
    }
    if (!current->log) {
        u64 page = page_allocate();
        if (!page)
            fail("no memory for a process's lines", current->pid, 1, 0);
        current->log = direct(page);
    }
    if (current->log_length + length > LOG_SIZE)
        fail("a process prints too much", current->pid, LOG_SIZE, length);
    memcpy(current->log + current->log_length, text, length);
    current->log_length += (u32)length;
}

/* The address may be anywhere, and RIP moves with every edit of the image: print neither. */
void process_killed(const struct frame *frame)
{
    char line[96];
    size_t length = format_line(line, sizeof(line), "memvirt-guest: process killed: vector %u, "
                                "error %x\n", frame->vector, frame->error);
    process_print(line, length);
    process_end(STATUS_KILLED + frame->vector);
}
