/* SPDX-License-Identifier: Apache-2.0 */
/* selfmod: code that is written, run, rewritten and run again. */
#include "user.h"

#define RWX (PROT_READ | PROT_WRITE | PROT_EXECUTE)
#define CODE USER_HEAP
#define ALIAS (USER_HEAP + 0x8000000ull)
#define STRADDLE (PAGE_SIZE - 3) /* the immediate crosses into the next page */

/* mov $value, %eax; ret */
static void write_code(u64 address, u32 value)
{
    volatile u8 *code = (volatile u8 *)address;
    code[0] = 0xb8;
    for (int i = 0; i < 4; i++)
        code[1 + i] = (u8)(value >> (8 * i));
    code[5] = 0xc3;
}

static void run_code(u64 address, u32 expected, const char *what)
{
    u32 (*code)(void) = (u32(*)(void))address;
    u32 found = code();
    if (found != expected)
        fail(what, address, expected, found);
}

/* Writes through another address take effect after a serializing instruction: IRETQ. */
static void serialize(void)
{
    gate4(CALL_PID, 0, 0, 0, 0);
}

static void in_child(u32 index, u64 argument)
{
    run_code(CODE, (u32)argument, "selfmod: inherited code");
    write_code(CODE, (u32)argument + 7 + index);
    run_code(CODE, (u32)argument + 7 + index, "selfmod: child's own code");
}

/* Code that rewrites the instruction right behind it: mov byte [rip+1], imm; mov eax, imm; ret. */
static void rewrite_ahead(u8 value)
{
    static const u8 template[] = {
        0x48, 0x8d, 0x05, 0x04, 0x00, 0x00, 0x00, /* lea 4(%rip), %rax -> the immediate below */
        0x40, 0x88, 0x38,                         /* mov %dil, (%rax) */
        0xb8, 0x11, 0x00, 0x00, 0x00,             /* mov $0x11, %eax */
        0xc3,
    };
    u64 address = CODE + 0x100;
    for (u64 i = 0; i < sizeof(template); i++)
        ((volatile u8 *)address)[i] = template[i];
    u32 (*code)(u32) = (u32(*)(u32))address;
    u32 found = code(value);
    if (found != value)
        fail("selfmod: rewritten ahead", address, value, found);
}

u64 program_selfmod(u64 rounds, u64 seed, u64 unused1, u64 unused2, u64 unused3)
{
    (void)unused1;
    (void)unused2;
    (void)unused3;
    for (u64 round = 0; round < rounds; round++) {
        u32 value = (u32)mix(seed, round);
        u64 flush = round % 2 ? FLUSH_CR3 : FLUSH_INVLPG;
        map(CODE, 2 * PAGE_SIZE, RWX, 0); /* a page that held other code a round ago */
        write_code(CODE, value);
        run_code(CODE, value, "selfmod: first");
        write_code(CODE, value + 1);
        run_code(CODE, value + 1, "selfmod: same address");
        write_code(CODE + STRADDLE, value + 2);
        run_code(CODE + STRADDLE, value + 2, "selfmod: across pages");
        write_code(CODE + STRADDLE, ~value);
        run_code(CODE + STRADDLE, ~value, "selfmod: across pages again");
        rewrite_ahead((u8)round);
        require(CALL_ALIAS, CODE, ALIAS, 2 * PAGE_SIZE, RWX);
        write_code(ALIAS, value + 3);
        serialize();
        run_code(CODE, value + 3, "selfmod: through an alias");
        run_code(ALIAS, value + 3, "selfmod: at the alias");
        require(CALL_STORE, ALIAS, 1, 0xc300000000b8ull | (value & 0xffull) << 8, 0);
        serialize();
        run_code(CODE, value & 0xff, "selfmod: written by the kernel");
        unmap(ALIAS, 2 * PAGE_SIZE, flush);
        write_code(CODE, value + 4);
        if (round % 8 == 0)
            in_children(2, in_child, value + 4);
        run_code(CODE, value + 4, "selfmod: after the alias");
        protect(CODE, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, flush);
        expect_page_fault(probe_fetch, CODE, 0x15, "selfmod: no-execute");
        protect(CODE, 2 * PAGE_SIZE, PROT_READ | PROT_EXECUTE, flush);
        run_code(CODE, value + 4, "selfmod: executable again");
        expect_page_fault(probe_write, CODE, 7, "selfmod: read-only code");
        unmap(CODE, 2 * PAGE_SIZE, flush);
        expect_page_fault(probe_fetch, CODE, 0x14, "selfmod: unmapped code");
    }
    print("selfmod: %u rounds verified", rounds);
    return 0;
}
