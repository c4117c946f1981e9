/* SPDX-License-Identifier: Apache-2.0 */
/* Helpers of the programs, and their dispatch. */
#include "user.h"

u64 run_program(u64 program, u64 a, u64 b, u64 c, u64 d, u64 e);

u64 run_program(u64 program, u64 a, u64 b, u64 c, u64 d, u64 e)
{
    switch (program) {
    case PROGRAM_FILL:
        return program_fill(a, b, c, d, e);
    case PROGRAM_RANDOM:
        return program_random(a, b, c, d, e);
    case PROGRAM_IDENTICAL:
        return program_identical(a, b, c, d, e);
    case PROGRAM_IDLE:
        return program_idle(a, b, c, d, e);
    case PROGRAM_CHURN:
        return program_churn(a, b, c, d, e);
    case PROGRAM_PROCESSES:
        return program_processes(a, b, c, d, e);
    case PROGRAM_FAULTS:
        return program_faults(a, b, c, d, e);
    case PROGRAM_SELFMOD:
        return program_selfmod(a, b, c, d, e);
    case PROGRAM_TRESPASS:
        return program_trespass(a, b, c, d, e);
    default:
        fail("no such program", program, 0, program);
    }
}

_Noreturn void exit(u64 status)
{
    call4(CALL_EXIT, status, 0, 0, 0);
    for (;;)
        __asm__ volatile("ud2");
}

_Noreturn void fail(const char *what, u64 address, u64 expected, u64 found)
{
    struct failure failure = {.address = address, .expected = expected, .found = found};
    for (size_t i = 0; i < sizeof(failure.what) - 1 && what[i]; i++)
        failure.what[i] = what[i];
    call4(CALL_FAIL, (u64)&failure, 0, 0, 0);
    exit(1);
}

void print(const char *format, ...)
{
    char line[160];
    va_list values;
    va_start(values, format);
    size_t length = format_line(line, sizeof(line), "memvirt-guest: ");
    length += format_list(line + length, sizeof(line) - length - 1, format, values);
    va_end(values);
    line[length++] = '\n';
    call4(CALL_PRINT, (u64)line, length, 0, 0);
}

void require(u64 call, u64 a, u64 b, u64 c, u64 d)
{
    s64 result = call4(call, a, b, c, d);
    if (result)
        fail("a system call was refused", a, call, (u64)result);
}

void map(u64 address, u64 length, u64 protection, u64 flags)
{
    require(CALL_MAP, address, length, protection, flags);
}

void unmap(u64 address, u64 length, u64 flush)
{
    require(CALL_UNMAP, address, length, flush, 0);
}

void protect(u64 address, u64 length, u64 protection, u64 flush)
{
    require(CALL_PROTECT, address, length, protection, flush);
}

void in_children(u32 count, void (*body)(u32 index, u64 argument), u64 argument)
{
    s64 pids[16];
    for (u32 i = 0; i < count; i++) {
        pids[i] = call4(CALL_FORK, 0, 0, 0, 0);
        if (pids[i] < 0)
            fail("fork failed", i, 0, (u64)pids[i]);
        if (pids[i] == 0) {
            body(i, argument);
            exit(0);
        }
    }
    for (u32 i = 0; i < count; i++) {
        s64 status = call4(CALL_WAIT, (u64)pids[i], 0, 0, 0);
        if (status)
            fail("a child did not exit well", i, 0, (u64)status);
    }
}

void fill_range(u64 address, u64 pages, u64 seed)
{
    u64 *words = (u64 *)address;
    for (u64 i = 0; i < pages * WORDS_PER_PAGE; i++)
        words[i] = mix(seed, i);
}

void verify_range(u64 address, u64 pages, u64 seed, const char *what)
{
    const volatile u64 *words = (const volatile u64 *)address;
    for (u64 i = 0; i < pages * WORDS_PER_PAGE; i++) {
        u64 found = words[i];
        if (found != mix(seed, i))
            fail(what, address + i * 8, mix(seed, i), found);
    }
}

void verify_value(u64 address, u64 expected, const char *what)
{
    u64 found = load(address);
    if (found != expected)
        fail(what, address, expected, found);
}
