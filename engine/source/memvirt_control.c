/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * Control registers and model-specific registers: the embedder is asked before the engine acts. The
 * engine itself checks nothing of what the manual makes #GP(0) (SDM vol. 2: MOV to control registers,
 * WRMSR, RDMSR, LGDT, LIDT), and has no local APIC behind CR8 and IA32_APIC_BASE.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "uc_priv.h"

enum { MEMVIRT_READ_CR, MEMVIRT_WRITE_CR, MEMVIRT_READ_MSR, MEMVIRT_WRITE_MSR };
enum { MEMVIRT_PASS, MEMVIRT_DONE, MEMVIRT_FAULT };

/*
 * `callback` gets one of the four kinds, the register's number and its value. It answers PASS (the
 * engine goes on as without it), DONE (a write has been done; a read's result is in *value) or FAULT
 * (#GP(0), nothing has changed). CR2 is not asked for; reads are asked for CR8 and MSRs only.
 */
UNICORN_EXPORT void memvirt_set_control(uc_engine *uc, memvirt_control_t callback, void *user);
void memvirt_set_control(uc_engine *uc, memvirt_control_t callback, void *user)
{
    uc->memvirt_control = callback;
    uc->memvirt_control_user = user;
}

/* True if the embedder has done it all. */
bool memvirt_control(CPUX86State *env, int kind, uint32_t number, uint64_t *value,
                     uintptr_t retaddr)
{
    struct uc_struct *uc = env->uc;
    int answer;

    if (uc->memvirt_control == NULL) {
        return false;
    }
    JIT_CALLBACK_GUARD_VAR(answer, uc->memvirt_control(uc, kind, number, value,
                                                       uc->memvirt_control_user));
    if (answer == MEMVIRT_FAULT) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
    return answer == MEMVIRT_DONE;
}

bool memvirt_read_cr(CPUX86State *env, int number, target_ulong *value, uintptr_t retaddr)
{
    uint64_t result = 0;

    if (number != 8 || !memvirt_control(env, MEMVIRT_READ_CR, number, &result, retaddr)) {
        return false;
    }
    *value = result;
    return true;
}

bool memvirt_write_cr(CPUX86State *env, int number, target_ulong value, uintptr_t retaddr)
{
    uint64_t copy = value;

    return number != 2 && memvirt_control(env, MEMVIRT_WRITE_CR, number, &copy, retaddr);
}

bool memvirt_read_msr(CPUX86State *env, uintptr_t retaddr)
{
    uint64_t value = 0;

    if (!memvirt_control(env, MEMVIRT_READ_MSR, (uint32_t)env->regs[R_ECX], &value, retaddr)) {
        return false;
    }
    env->regs[R_EAX] = (uint32_t)value;
    env->regs[R_EDX] = (uint32_t)(value >> 32);
    return true;
}

bool memvirt_write_msr(CPUX86State *env, uintptr_t retaddr)
{
    uint64_t value = (uint32_t)env->regs[R_EAX] | (uint64_t)(uint32_t)env->regs[R_EDX] << 32;

    return memvirt_control(env, MEMVIRT_WRITE_MSR, (uint32_t)env->regs[R_ECX], &value, retaddr);
}

/* LGDT, LIDT: the base must be canonical in 64-bit mode. */
void helper_memvirt_table_base(CPUX86State *env, target_ulong base)
{
    if ((env->hflags & HF_CS64_MASK) && (int64_t)base >> 47 != 0 && (int64_t)base >> 47 != -1) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}
