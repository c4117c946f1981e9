/* SPDX-License-Identifier: Apache-2.0 */
/* faults, ring 3: every exception a program can provoke, with all the processor says about it. */
#include "user.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE_AT (USER_HEAP)
#define LARGE_AT (USER_HEAP + 0x8000000ull)
#define CODE_AT (USER_HEAP + 0x4000000ull)
#define TOP_AT 0x300000000000ull /* a level-4 entry of its own */
#define NON_CANONICAL 0x800000000000ull
#define KERNEL_DIRECT 0xffff800000100000ull
#define KERNEL_NOTHING 0xffffa00000000000ull

#define DECLARE(name)                                                                              \
    void name(u64);                                                                                \
    extern char name##_at[]
DECLARE(probe_update);
DECLARE(probe_push);
DECLARE(probe_straddle);
DECLARE(probe_divide);
DECLARE(probe_divide_overflow);
DECLARE(probe_breakpoint);
DECLARE(probe_undefined);
DECLARE(probe_step);
DECLARE(probe_hlt);
DECLARE(probe_cli);
DECLARE(probe_in);
DECLARE(probe_out);
DECLARE(probe_read_cr3);
DECLARE(probe_invlpg);
DECLARE(probe_rdmsr);
DECLARE(probe_lidt);
DECLARE(probe_int_kernel_gate);
DECLARE(probe_int_page_fault);
DECLARE(probe_int_absent_gate);
DECLARE(probe_load_kernel_selector);
DECLARE(probe_load_beyond_table);
DECLARE(probe_load_absent);
DECLARE(probe_load_absent_stack);
DECLARE(probe_load_null_stack);
DECLARE(probe_far_return);
DECLARE(probe_sysret);
extern char probe_fetch_at[], probe_read_at[], probe_write_at[];

static void check(const char *name, void (*code)(u64), const char *at, u64 argument, u64 vector,
                  u64 error, u64 address)
{
    struct fault_record record = probe(code, argument);
    bool good = record.vector == vector && record.error == error && record.address == address &&
                record.rip == (u64)at;
    print("faults: ring 3: %s: %s", name, good ? "ok" : "wrong");
    if (good)
        return;
    print("faults: expected vector %u error %x CR2 %x RIP %x", vector, error, address, (u64)at);
    print("faults: found vector %u error %x CR2 %x RIP %x", record.vector, record.error,
          record.address, record.rip);
    fail(name, address, vector << 32 | error, record.vector << 32 | record.error);
}

#define CHECK(text, code, argument, vector, error, address)                                        \
    check(text, code, code##_at, argument, vector, error, address)
#define CHECK_READ(text, at, error) CHECK(text, probe_read, at, 14, error, at)
#define CHECK_WRITE(text, at, error) CHECK(text, probe_write, at, 14, error, at)
#define CHECK_FETCH(text, at, error) check(text, probe_fetch, (char *)(at), at, 14, error, at)

static void instructions(u64 step)
{
    CHECK("#DE by zero", probe_divide, 0, 0, 0, 0);
    CHECK("#DE overflow", probe_divide_overflow, 0, 0, 0, 0);
    if (step)
        CHECK("#DB single step", probe_step, 0, 1, 0, 0);
    CHECK("#BP", probe_breakpoint, 0, 3, 0, 0);
    CHECK("#UD", probe_undefined, 0, 6, 0, 0);
    CHECK("#GP hlt", probe_hlt, 0, 13, 0, 0);
    CHECK("#GP cli", probe_cli, 0, 13, 0, 0);
    CHECK("#GP in", probe_in, 0, 13, 0, 0);
    CHECK("#GP out", probe_out, 0, 13, 0, 0);
    CHECK("#GP mov from CR3", probe_read_cr3, 0, 13, 0, 0);
    CHECK("#GP invlpg", probe_invlpg, PAGE_AT, 13, 0, 0);
    CHECK("#GP rdmsr", probe_rdmsr, 0, 13, 0, 0);
    CHECK("#GP lidt", probe_lidt, PAGE_AT, 13, 0, 0);
    CHECK("#GP sysret", probe_sysret, 0, 13, 0, 0);
    CHECK("#GP non-canonical read", probe_read, NON_CANONICAL, 13, 0, 0);
    CHECK("#GP non-canonical write", probe_write, NON_CANONICAL, 13, 0, 0);
}

/* Error code of a gate: vector * 8 + 2. QEMU 7.2 says vector * 16 + 2 in long mode. */
static void check_gate(const char *name, void (*code)(u64), const char *at, u64 vector, u64 strict)
{
    u64 expected = vector * 8 + 2;
    if (!strict && probe(code, 0).error == vector * 16 + 2)
        expected = vector * 16 + 2;
    check(name, code, at, 0, 13, expected, 0);
}

/* Error code: the selector. */
static void selectors(u64 strict)
{
    check_gate("#GP int of a kernel gate", probe_int_kernel_gate, probe_int_kernel_gate_at, 0x20,
               strict);
    check_gate("#GP int 14", probe_int_page_fault, probe_int_page_fault_at, 14, strict);
    check_gate("#GP int of an empty gate", probe_int_absent_gate, probe_int_absent_gate_at, 0x90,
               strict);
    CHECK("#GP kernel selector", probe_load_kernel_selector, 0, 13, 0x10, 0);
    CHECK("#GP selector beyond the table", probe_load_beyond_table, 0, 13, 0x7f8, 0);
    CHECK("#NP absent segment", probe_load_absent, 0, 11, 0x40, 0);
    CHECK("#SS absent stack segment", probe_load_absent_stack, 0, 12, 0x40, 0);
    CHECK("#GP null stack segment", probe_load_null_stack, 0, 13, 0, 0);
    if (strict) /* QEMU 7.2 with SMAP reads the stack as the kernel would */
        CHECK("#GP far return to the kernel", probe_far_return, 0, 13, 0x8, 0);
}

static void not_present(u64 strict)
{
    CHECK_READ("#PF absent, read", PAGE_AT + 0x123 * 8, 4);
    CHECK_WRITE("#PF absent, write", PAGE_AT + 8, 6);
    CHECK_FETCH("#PF absent, fetch", PAGE_AT, 0x14);
    if (strict) /* QEMU 7.2 reports the read that comes first */
        CHECK("#PF absent, update", probe_update, PAGE_AT, 14, 6, PAGE_AT);
    CHECK("#PF absent, push", probe_push, PAGE_AT, 14, 6, PAGE_AT - 8);
    CHECK_READ("#PF kernel hole, read", KERNEL_NOTHING, 4);
    CHECK_READ("#PF null pointer", 0ull, 4);
}

static void supervisor(u64 kernel_text)
{
    CHECK_READ("#PF kernel text, read", kernel_text, 5);
    CHECK_WRITE("#PF kernel text, write", kernel_text, 7);
    CHECK_FETCH("#PF kernel text, fetch", kernel_text, 0x15);
    CHECK_READ("#PF direct map, read", KERNEL_DIRECT, 5);
}

static void rights(void)
{
    map(PAGE_AT, PAGE_SIZE, PROT_READ, 0);
    verify_value(PAGE_AT, 0, "faults: fresh page");
    CHECK_WRITE("#PF read-only, write", PAGE_AT + 16, 7);
    CHECK("#PF read-only, update", probe_update, PAGE_AT, 14, 7, PAGE_AT);
    CHECK_FETCH("#PF no-execute, fetch", PAGE_AT, 0x15);
    CHECK("#PF second page of a read", probe_straddle, PAGE_AT + PAGE_SIZE, 14, 4,
          PAGE_AT + PAGE_SIZE);
    CHECK_WRITE("#PF own code, write", (u64)probe_read_at, 7);
    unmap(PAGE_AT, PAGE_SIZE, FLUSH_INVLPG);
}

static bool poison(u64 address, u64 kind, u64 on)
{
    return call4(CALL_POISON, address, kind, on, 0) == 0;
}

/*
 * QEMU 7.2 leaves P clear in the error code of a reserved bit, processors set it. What to take
 * away from the error codes to expect: 1 for the former, unless we are strict.
 */
static u64 absent_bit(u64 strict)
{
    if (strict)
        return 0;
    map(TOP_AT, PAGE_SIZE, RW, 0);
    store(TOP_AT, 0);
    poison(TOP_AT, POISON_TOP, 1);
    struct fault_record record = probe(probe_read, TOP_AT);
    poison(TOP_AT, POISON_TOP, 0);
    unmap(TOP_AT, PAGE_SIZE, FLUSH_INVLPG);
    return ~record.error & 1;
}

static void reserved_small(u64 absent)
{
    map(PAGE_AT, PAGE_SIZE, RW, 0);
    store(PAGE_AT, 0x1234);
    if (poison(PAGE_AT, POISON_SMALL, 1)) {
        expect_page_fault(probe_read, PAGE_AT, 0xd - absent, "reserved bit 51, read");
        expect_page_fault(probe_write, PAGE_AT, 0xf - absent, "reserved bit 51, write");
        expect_page_fault(probe_fetch, PAGE_AT, 0x1d - absent, "reserved bit 51, fetch");
        poison(PAGE_AT, POISON_SMALL, 0);
    }
    verify_value(PAGE_AT, 0x1234, "faults: after reserved bit 51");
    print("faults: ring 3: #PF reserved bit 51: ok, or no such bit");
    unmap(PAGE_AT, PAGE_SIZE, FLUSH_INVLPG);
}

static void reserved_upper(u64 large, u64 absent)
{
    map(TOP_AT, PAGE_SIZE, RW, 0);
    store(TOP_AT, 0x4321);
    poison(TOP_AT, POISON_TOP, 1);
    CHECK_READ("#PF reserved bit at level 4, read", TOP_AT, 0xd - absent);
    CHECK_WRITE("#PF reserved bit at level 4, write", TOP_AT, 0xf - absent);
    poison(TOP_AT, POISON_TOP, 0);
    verify_value(TOP_AT, 0x4321, "faults: after a reserved bit at level 4");
    unmap(TOP_AT, PAGE_SIZE, FLUSH_INVLPG);
    if (!large)
        return;
    map(LARGE_AT, LARGE_SIZE, RW, MAP_LARGE);
    store(LARGE_AT + 0x1000, 0x9876);
    poison(LARGE_AT + 0x1000, POISON_LARGE, 1);
    CHECK_READ("#PF reserved bit in a large page, read", LARGE_AT + 0x1000, 0xd - absent);
    CHECK_FETCH("#PF reserved bit in a large page, fetch", LARGE_AT + 0x1000, 0x1d - absent);
    poison(LARGE_AT + 0x1000, POISON_LARGE, 0);
    verify_value(LARGE_AT + 0x1000, 0x9876, "faults: after a reserved bit in a large page");
    unmap(LARGE_AT, LARGE_SIZE, FLUSH_INVLPG);
}

static void expect_call(const char *name, s64 result, s64 expected)
{
    print("faults: ring 3: %s: %s", name, result == expected ? "ok" : "wrong");
    if (result != expected)
        fail(name, 0, (u64)expected, (u64)result);
}

/* The kernel meets the fault for us, and its fix-up turns it into an error or resolves it. */
static void kernel_on_our_behalf(u64 kernel_text)
{
    u64 sum = 0;
    map(PAGE_AT, 2 * PAGE_SIZE, RW, 0);
    expect_call("kernel read of untouched memory", call4(CALL_SUM, PAGE_AT, 512, (u64)&sum, 0), 0);
    expect_call("kernel write to copy-on-write memory",
                call4(CALL_STORE, PAGE_AT + PAGE_SIZE - 16, 4, 0x77, 0), 0);
    verify_value(PAGE_AT + PAGE_SIZE + 8, 0x77, "faults: kernel write");
    expect_call("kernel read across the end",
                call4(CALL_SUM, PAGE_AT + PAGE_SIZE, 513, (u64)&sum, 0), ERROR_BAD_ADDRESS);
    expect_call("kernel read of kernel memory", call4(CALL_SUM, kernel_text, 1, (u64)&sum, 0),
                ERROR_BAD_ADDRESS);
    expect_call("kernel read of a non-canonical address",
                call4(CALL_SUM, NON_CANONICAL, 1, (u64)&sum, 0), ERROR_BAD_ADDRESS);
    protect(PAGE_AT, 2 * PAGE_SIZE, PROT_READ, FLUSH_INVLPG);
    expect_call("kernel write to read-only memory", call4(CALL_STORE, PAGE_AT, 1, 1, 0),
                ERROR_BAD_ADDRESS);
    expect_call("the same through int 0x80", gate4(CALL_STORE, PAGE_AT, 1, 1, 0),
                ERROR_BAD_ADDRESS);
    expect_call("int 0x80 and syscall agree",
                gate4(CALL_PID, 0, 0, 0, 0) - call4(CALL_PID, 0, 0, 0, 0), 0);
    expect_call("unknown system call", call4(CALL_COUNT, 0, 0, 0, 0), ERROR_INVALID);
    unmap(PAGE_AT, 2 * PAGE_SIZE, FLUSH_CR3);
}

/* Accessed and dirty bits: a read sets one, a write both. */
static void accessed_and_dirty(void)
{
    map(PAGE_AT, PAGE_SIZE, RW, 0);
    map(CODE_AT, PAGE_SIZE, RW, 0);
    require(CALL_STORE, CODE_AT, 1, 5, 0);
    require(CALL_ALIAS, CODE_AT, CODE_AT + PAGE_SIZE, PAGE_SIZE, RW);
    s64 present = MAPPING_PRESENT | MAPPING_WRITABLE, at = CODE_AT + PAGE_SIZE;
    expect_call("untouched mapping", call4(CALL_MAPPING, (u64)at, 0, 0, 0), present);
    verify_value((u64)at, 5, "faults: alias");
    present |= MAPPING_ACCESSED;
    expect_call("accessed after a read", call4(CALL_MAPPING, (u64)at, 0, 0, 0), present);
    store((u64)at, 6);
    present |= MAPPING_DIRTY;
    expect_call("dirty after a write", call4(CALL_MAPPING, (u64)at, 0, 0, 0), present);
    unmap(CODE_AT, PAGE_SIZE, FLUSH_INVLPG);
    unmap(CODE_AT + PAGE_SIZE, PAGE_SIZE, FLUSH_INVLPG);
    unmap(PAGE_AT, PAGE_SIZE, FLUSH_INVLPG);
}

u64 program_faults(u64 large, u64 step, u64 kernel_text, u64 strict, u64 unused)
{
    (void)unused;
    instructions(step);
    selectors(strict);
    not_present(strict);
    supervisor(kernel_text);
    rights();
    u64 absent = absent_bit(strict);
    reserved_small(absent);
    reserved_upper(large, absent);
    kernel_on_our_behalf(kernel_text);
    accessed_and_dirty();
    return 0;
}

/* Dies of its own fault: the kernel must kill it, and only it. */
u64 program_trespass(u64 kind, u64 unused1, u64 unused2, u64 unused3, u64 unused4)
{
    (void)unused1;
    (void)unused2;
    (void)unused3;
    (void)unused4;
    if (kind == 14)
        probe_write(KERNEL_DIRECT);
    else if (kind == 13)
        probe_hlt(0);
    else if (kind == 6)
        probe_undefined(0);
    else
        probe_divide(0);
    return 1;
}
