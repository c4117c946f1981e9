/* SPDX-License-Identifier: Apache-2.0 */
/* faults, ring 0: what the kernel itself can provoke; then the programs' half. */
#include "processor.h"
#include "workloads.h"

#define ANYTHING ~0ull
#define NON_CANONICAL 0x0000800000000000u
#define ERROR_PRESENT 1
#define ERROR_RESERVED 8
#define RESERVED_LARGE (1ull << 13)

extern char text_start[];

#define DECLARE(name)                                                                              \
    void name(u64);                                                                                \
    extern char name##_at[]
DECLARE(kernel_read);
DECLARE(kernel_write);
DECLARE(kernel_fetch);
DECLARE(kernel_divide);
DECLARE(kernel_breakpoint);
DECLARE(kernel_undefined);
DECLARE(kernel_gate);
DECLARE(kernel_load_beyond_table);
DECLARE(kernel_load_absent);
DECLARE(kernel_load_user_stack);
DECLARE(kernel_far_return);
DECLARE(kernel_iret);
DECLARE(kernel_lose_stack);

/* QEMU 7.2 leaves P clear in the error code of a reserved bit, processors set it. */
static bool strict;

/* `vector` NO_FAULT: the access must succeed. */
static void check(const char *name, void (*code)(u64), u64 at, u64 argument, u64 vector,
                  u64 error, u64 address)
{
    run_kernel_probe(code, argument);
    struct fault_record *found = &kernel_probe.record;
    if (error & ERROR_RESERVED && !strict)
        found->error |= error & ERROR_PRESENT;
    bool good = found->vector == vector;
    if (vector != NO_FAULT)
        good = good && found->error == error &&
               (address == ANYTHING || found->address == address) &&
               (at == ANYTHING || found->rip == at);
    print("faults: ring 0: %s: %s", name, good ? "ok" : "wrong");
    if (good)
        return;
    print("faults: expected vector %u error %x CR2 %x RIP %x", vector, error, address, at);
    print("faults: found vector %u error %x CR2 %x RIP %x", found->vector, found->error,
          found->address, found->rip);
    fail(name, address, vector << 32 | error, found->vector << 32 | found->error);
}

#define CHECK(text, code, argument, vector, error)                                                 \
    check(text, code, (u64)code##_at, argument, vector, error, 0)
#define CHECK_READ(text, at, error) check(text, kernel_read, (u64)kernel_read_at, at, 14, error, at)
#define CHECK_WRITE(text, at, error)                                                               \
    check(text, kernel_write, (u64)kernel_write_at, at, 14, error, at)
#define CHECK_FETCH(text, at, error) check(text, kernel_fetch, at, at, 14, error, at)

static void instructions(void)
{
    CHECK("#DE", kernel_divide, 0, 0, 0);
    CHECK("#BP", kernel_breakpoint, 0, 3, 0);
    CHECK("#UD", kernel_undefined, 0, 6, 0);
    CHECK("int 0x80", kernel_gate, 0, 0x80, 0);
    CHECK("#GP selector beyond the table", kernel_load_beyond_table, 0, 13, 0x7f8);
    CHECK("#NP absent segment", kernel_load_absent, 0, 11, 0x40);
    CHECK("#GP user stack segment", kernel_load_user_stack, 0, 13, 0x20);
    CHECK("#GP far return beyond the table", kernel_far_return, 0, 13, 0x48);
    CHECK("#GP iret to a null stack segment", kernel_iret, 0, 13, 0);
    CHECK("#GP non-canonical read", kernel_read, NON_CANONICAL, 13, 0);
    CHECK("#GP non-canonical write", kernel_write, NON_CANONICAL, 13, 0);
}

/* The image and the direct map keep W^X. */
static void kernel_image(void)
{
    u64 text = (u64)text_start, data = (u64)&kernel_probe;
    CHECK_WRITE("#PF write to kernel text", text, 3);
    CHECK_WRITE("#PF write to text in the direct map", text - KERNEL_BASE + DIRECT_BASE, 3);
    CHECK_FETCH("#PF fetch from kernel data", data, 0x11);
    CHECK_FETCH("#PF fetch from the direct map", data - KERNEL_BASE + DIRECT_BASE, 0x11);
}

static void write_protection_off(u64 address)
{
    u64 cr0;
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0 & ~(u64)CR0_WP) : "memory");
    run_kernel_probe(kernel_write, address);
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
    bool good = kernel_probe.record.vector == NO_FAULT && *(volatile u64 *)address == 0x5a;
    print("faults: ring 0: write to read-only memory with WP clear: %s", good ? "ok" : "wrong");
    if (!good)
        fail("write with WP clear", address, NO_FAULT, kernel_probe.record.vector);
    CHECK_WRITE("#PF the same with WP set again", address, 3);
}

static void window(void)
{
    u64 page = page_allocate_zeroed(), at = WINDOW_BASE + 0x5000;
    CHECK_READ("#PF absent, read", at, 0);
    CHECK_WRITE("#PF absent, write", at + 8, 2);
    CHECK_FETCH("#PF absent, fetch", at, 0x10);
    u64 *entry = paging_entry(kernel_root, at, 1, true);
    *entry = page | ENTRY_PRESENT | ENTRY_NX;
    check("read of a page just mapped", kernel_read, ANYTHING, at, NO_FAULT, 0, 0);
    CHECK_WRITE("#PF read-only, write", at + 8, 3);
    CHECK_FETCH("#PF no-execute, fetch", at, 0x11);
    write_protection_off(at + 16);
    *entry |= ENTRY_WRITABLE; /* a raise: not flushed */
    check("write to a page just made writable", kernel_write, ANYTHING, at, NO_FAULT, 0, 0);
    *entry = 0;
    invalidate_page(at);
    CHECK_READ("#PF absent again, read", at, 0);
    /* The page table goes, the tables above it stay: all roots share them. */
    u64 *upper = paging_entry(kernel_root, at, 2, false);
    u64 table = *upper & ENTRY_ADDRESS;
    *upper = 0;
    invalidate_page(at);
    page_release(table);
    page_release(page);
}

static void reserved_bit(void)
{
    u64 at = WINDOW_BASE + 4 * LARGE_SIZE;
    u64 *entry = paging_entry(kernel_root, at, 2, true);
    *entry = RESERVED_LARGE | ENTRY_LARGE | ENTRY_WRITABLE | ENTRY_PRESENT;
    CHECK_READ("#PF reserved bit, read", at + 0x1008, 9);
    CHECK_WRITE("#PF reserved bit, write", at, 0xb);
    CHECK_FETCH("#PF reserved bit, fetch", at, 0x19);
    *entry = 0;
    invalidate_page(at);
}

/* A user page in reach of the kernel: SMEP and SMAP decide, if the processor has them. */
static void user_page(void)
{
    u64 page = page_allocate_zeroed(), at = USER_HEAP;
    *paging_entry(kernel_root, at, 1, true) = page | ENTRY_PRESENT | ENTRY_USER | ENTRY_WRITABLE;
    *(u8 *)direct(page) = 0xc3; /* ret */
    if (smap_enabled)
        CHECK_READ("user page, read: as SMAP says", at, 1);
    else
        check("user page, read: as SMAP says", kernel_read, ANYTHING, at, NO_FAULT, 0, 0);
    if (smep_enabled)
        CHECK_FETCH("user page, fetch: as SMEP says", at, 0x11);
    else
        check("user page, fetch: as SMEP says", kernel_fetch, ANYTHING, at, NO_FAULT, 0, 0);
    *paging_entry(kernel_root, at, 1, true) = 0;
    invalidate_page(at);
    paging_prune(kernel_root, at);
    page_release(page);
}

static void double_fault(void)
{
    check("#DF stack lost", kernel_lose_stack, ANYTHING, WINDOW_BASE + 0x9000, 8, 0, ANYTHING);
}

/* A fault that is no one's fault but the program's ends it, and nothing else. */
static void trespassers(void)
{
    static const u64 vectors[] = {0, 6, 13, 14};
    for (u32 i = 0; i < 4; i++) {
        u64 arguments[5] = {vectors[i]};
        u64 status = process_run(PROGRAM_TRESPASS, arguments);
        if (status != STATUS_KILLED + vectors[i])
            fail("a trespasser was not killed", vectors[i], STATUS_KILLED + vectors[i], status);
    }
    print("faults: four trespassers killed: ok");
}

void workload_faults(void)
{
    strict = option_number("strict", 0);
    instructions();
    kernel_image();
    window();
    reserved_bit();
    user_page();
    double_fault();
    u64 arguments[5] = {blocks_assured() >= 1, option_number("step", 1), (u64)text_start,
                        strict};
    run_program(PROGRAM_FAULTS, arguments);
    trespassers();
}
