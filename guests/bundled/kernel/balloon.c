/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory balloon: VMware's protocol on port 0x5670, the guest's end.
 *
 * Pages that nobody uses are lent to the host (physical.c keeps them) as far as it wants them. They
 * count as free: when the allocator has nothing else left below its zone, it calls some of them
 * back, so no workload ever fails, or behaves differently, because of the balloon.
 *
 * The timer interrupt polls. It never comes while the kernel is at work, only in ring 3 and while
 * the kernel waits for an interrupt: the allocator and the batch page are never in use then.
 *
 * Command line: balloon=0, no driver; balloon=refuse, a driver that gives nothing.
 */
#include "kernel.h"
#include "processor.h"

#define CPUID_HYPERVISOR (1u << 31) /* leaf 1 ECX */
#define CPUID_SIGNATURE 0x40000000
#define BACKDOOR_PORT 0x5658
#define BACKDOOR_MAGIC 0x564d5868
#define BACKDOOR_GET_VERSION 10

#define BALLOON_PORT 0x5670
#define BALLOON_MAGIC 0x456c6d6f
#define COMMAND_START 0
#define COMMAND_GET_TARGET 1
#define COMMAND_LOCK 2
#define COMMAND_UNLOCK 3
#define COMMAND_GUEST_ID 4
#define COMMAND_BATCHED_LOCK 6
#define COMMAND_BATCHED_UNLOCK 7
#define GUEST_OTHER 0
#define CAN_BASIC 0x2
#define CAN_BATCHED 0x4
#define STATUS_SUCCESS 0
#define STATUS_RESET 7
#define STATUS_HAS_CAPABILITIES 0x03000000
#define ENTRY_STATUS 0x1f

#define POLL_TICKS 5
#define HOLD_TICKS 100      /* no inflation for so long after the guest ran short */
#define BATCHES_PER_POLL 16
#define MOST_REFUSED 16
#define KEPT_PAGES 64       /* not lent: small needs should not call for a deflation */
#define RECALLED_PAGES 128  /* called back at a time when the guest runs short */

static bool refuses, started;
static u64 capabilities, target, hold_until;
static u64 batch[WORDS_PER_PAGE] __attribute__((aligned(PAGE_SIZE)));

struct reply {
    u64 status, rbx, rcx;
};

static struct reply hypervisor(u16 port, u64 magic, u64 command, u64 argument1, u64 argument2)
{
    struct reply reply = {.rbx = argument1, .rcx = command};
    u64 rdx = port, rsi = argument2;
    __asm__ volatile("inl %%dx, %%eax"
                     : "=a"(reply.status), "+b"(reply.rbx), "+c"(reply.rcx), "+d"(rdx), "+S"(rsi)
                     : "0"(magic)
                     : "memory");
    return reply;
}

static struct reply call(u64 command, u64 argument1, u64 argument2)
{
    struct reply reply = hypervisor(BALLOON_PORT, BALLOON_MAGIC, command, argument1, argument2);
    if (reply.status == STATUS_RESET)
        started = false;
    return reply;
}

/* The port of the same number may be something else: the signature goes first. */
static bool is_vmware(void)
{
    if (!(cpuid(1).ecx & CPUID_HYPERVISOR))
        return false;
    struct cpuid_result found = cpuid(CPUID_SIGNATURE);
    u32 name[3] = {found.ebx, found.ecx, found.edx};
    if (memcmp(name, "VMwareVMware", sizeof(name)) != 0)
        return false;
    struct reply reply =
        hypervisor(BACKDOOR_PORT, BACKDOOR_MAGIC, BACKDOOR_GET_VERSION, ~0u, 0);
    return (u32)reply.status != ~0u && (u32)reply.rbx == BACKDOOR_MAGIC;
}

/* After a reset, too: the host then holds nothing of ours any more. */
static bool start(void)
{
    pages_recall_all();
    struct reply reply = call(COMMAND_START, CAN_BASIC | CAN_BATCHED, 0);
    if (reply.status == STATUS_SUCCESS)
        capabilities = CAN_BASIC;
    else if (reply.status == STATUS_HAS_CAPABILITIES)
        capabilities = reply.rcx;
    else
        return false;
    started = capabilities & (CAN_BASIC | CAN_BATCHED);
    return started && call(COMMAND_GUEST_ID, GUEST_OTHER, 0).status == STATUS_SUCCESS;
}

/* Lock or unlock the first `count` pages of `batch`; each entry gets its status. */
static void transfer(u32 count, bool lock)
{
    if (capabilities & CAN_BATCHED) {
        u64 page = ((u64)batch - KERNEL_BASE) / PAGE_SIZE;
        struct reply reply = call(lock ? COMMAND_BATCHED_LOCK : COMMAND_BATCHED_UNLOCK, page,
                                  count);
        if (reply.status == STATUS_SUCCESS)
            target = reply.rbx;
        else
            for (u32 i = 0; i < count; i++)
                batch[i] |= reply.status & ENTRY_STATUS;
        return;
    }
    for (u32 i = 0; i < count; i++) {
        struct reply reply = call(lock ? COMMAND_LOCK : COMMAND_UNLOCK, batch[i] / PAGE_SIZE, 1);
        if (reply.status == STATUS_SUCCESS)
            target = reply.rbx;
        batch[i] |= reply.status & ENTRY_STATUS;
    }
}

/* Up to one batch; returns how many pages the host took, and adds the others to `refused`. */
static u64 inflate(u64 wanted, u64 *refused)
{
    u32 count = 0, taken = 0;
    while (count < WORDS_PER_PAGE && count < wanted) {
        u64 page = page_borrow(KEPT_PAGES);
        if (!page)
            break;
        batch[count++] = page;
    }
    if (count)
        transfer(count, true);
    for (u32 i = 0; i < count; i++) {
        u64 page = batch[i] & ENTRY_ADDRESS;
        if (started && (batch[i] & ENTRY_STATUS) == STATUS_SUCCESS) {
            page_lend(page);
            taken++;
        } else {
            page_release(page);
            ++*refused;
        }
    }
    return taken;
}

/* Up to one batch; returns how many pages came back. */
static u64 deflate(u64 wanted)
{
    u32 count = 0, back = 0;
    while (count < WORDS_PER_PAGE && count < wanted) {
        u64 page = page_recall();
        if (!page)
            break;
        batch[count++] = page;
    }
    if (count)
        transfer(count, false);
    for (u32 i = 0; i < count; i++) {
        u64 page = batch[i] & ENTRY_ADDRESS;
        if (!started || (batch[i] & ENTRY_STATUS) == STATUS_SUCCESS) {
            page_release(page);
            back++;
        } else {
            page_lend(page);
        }
    }
    if (!started)
        pages_recall_all();
    return back;
}

static void poll(void)
{
    if (!started && !start())
        return;
    struct reply reply = call(COMMAND_GET_TARGET, pages_total(), 0);
    if (reply.status != STATUS_SUCCESS)
        return;
    target = reply.rbx;
    u64 refused = 0;
    for (u32 i = 0; i < BATCHES_PER_POLL && started && refused < MOST_REFUSED; i++) {
        u64 size = pages_lent(), moved = 0;
        if (size > target)
            moved = deflate(size - target);
        else if (size < target && !refuses && ticks >= hold_until)
            moved = inflate(target - size, &refused);
        if (!moved)
            return;
    }
}

static void tick(void)
{
    if (ticks % POLL_TICKS == 0)
        poll();
}

/* Some lent pages are free again; false if there were none. */
static bool relieve(void)
{
    if (!pages_lent())
        return false;
    hold_until = ticks + HOLD_TICKS;
    return deflate(RECALLED_PAGES) != 0;
}

void balloon_initialize(void)
{
    char mode[8];
    option_text("balloon", "1", mode, sizeof(mode));
    refuses = text_equal(mode, "refuse");
    if (text_equal(mode, "0") || !is_vmware())
        return;
    pages_on_shortage(relieve);
    timer_on_tick(tick);
}
