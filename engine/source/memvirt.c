/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * What memvirt's build of the engine exports beyond Unicorn's API. All of it may be called between
 * runs only, from the thread that runs the engine; none of it exists in other builds, which is how
 * memvirt tells them apart.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "fpu/softfloat.h"
#include "uc_priv.h"

/* Raised whenever a function below, or a field of the layout, changes its meaning. */
#define MEMVIRT_INTERFACE 2

UNICORN_EXPORT uint32_t memvirt_interface(void);
uint32_t memvirt_interface(void)
{
    return MEMVIRT_INTERFACE;
}

/* Host addresses inside one engine, and offsets from the register file's begin. */
typedef struct MemvirtLayout {
    uint64_t registers;     /* the register file: 16 general registers, then RIP */
    uint64_t fault_address; /* the guest virtual address of a refused translation */
    uint64_t error_code;    /* of the last exception, followed by "caused by int" */
    uint64_t star, lstar, cstar, fmask, kernel_gs_base;
    uint64_t large_pages;   /* the first of the TLB's records of large pages */
    uint64_t tlb_record_bytes, mmu_indexes;
    uint64_t rip, flags, hidden_flags, segments, segment_bytes;
    uint64_t cr0, cr2, cr3, cr4, efer;
    uint64_t exception_in_flight; /* from error_code, not from registers */
} MemvirtLayout;

/* Writes at most `bytes` bytes of the layout; returns how many there are. */
UNICORN_EXPORT uint64_t memvirt_layout(uc_engine *uc, void *to, uint64_t bytes);
uint64_t memvirt_layout(uc_engine *uc, void *to, uint64_t bytes)
{
    CPUX86State *env = uc->cpu->env_ptr;
    uintptr_t base = (uintptr_t)env->regs;
    MemvirtLayout layout = {
        .registers = base,
        .fault_address = (uintptr_t)&uc->invalid_addr,
        .error_code = (uintptr_t)&env->error_code,
        .star = (uintptr_t)&env->star,
        .lstar = (uintptr_t)&env->lstar,
        .cstar = (uintptr_t)&env->cstar,
        .fmask = (uintptr_t)&env->fmask,
        .kernel_gs_base = (uintptr_t)&env->kernelgsbase,
        .large_pages = (uintptr_t)&env_tlb(env)->d[0].large_page_addr,
        .tlb_record_bytes = sizeof(CPUTLBDesc),
        .mmu_indexes = NB_MMU_MODES,
        .rip = (uintptr_t)&env->eip - base,
        .flags = (uintptr_t)&env->eflags - base,
        .hidden_flags = (uintptr_t)&env->hflags - base,
        .segments = (uintptr_t)env->segs - base,
        .segment_bytes = sizeof(SegmentCache),
        .cr0 = (uintptr_t)&env->cr[0] - base,
        .cr2 = (uintptr_t)&env->cr[2] - base,
        .cr3 = (uintptr_t)&env->cr[3] - base,
        .cr4 = (uintptr_t)&env->cr[4] - base,
        .efer = (uintptr_t)&env->efer - base,
        .exception_in_flight = (uintptr_t)&env->old_exception - (uintptr_t)&env->error_code,
    };
    memcpy(to, &layout, MIN(bytes, sizeof(layout)));
    return sizeof(layout);
}

/*
 * Count the bytes of every block begun in *count, and call `callback` at the begin of each block
 * with *count >= *deadline, before it executes. uc_emu_stop sets *deadline to its minimum, so that
 * one comparison does for both; the embedder sets it anew before each run.
 *
 * To be called before any code is translated. Replaces UC_HOOK_BLOCK.
 */
UNICORN_EXPORT void memvirt_count_blocks(uc_engine *uc, int64_t *count, int64_t *deadline,
                                         uc_cb_hookcode_t callback, void *user);
void memvirt_count_blocks(uc_engine *uc, int64_t *count, int64_t *deadline,
                          uc_cb_hookcode_t callback, void *user)
{
    uc->memvirt_count = count;
    uc->memvirt_deadline = deadline;
    uc->memvirt_callback = callback;
    uc->memvirt_user = user;
}

/* The deadline has come, or somebody asked the engine to stop. */
void helper_memvirt_block(CPUX86State *env, uint64_t eip, uint64_t pc, uint32_t size)
{
    struct uc_struct *uc = env->uc;
    CPUState *cpu = env_cpu(env);

    env->eip = eip;
    if (!cpu_loop_exit_requested(cpu)) {
        JIT_CALLBACK_GUARD(uc->memvirt_callback(uc, pc, size, uc->memvirt_user));
    }
    if (cpu_loop_exit_requested(cpu)) {
        if (uc->nested_level == 1) {
            tb_exec_unlock(uc);
        }
        cpu->tcg_exit_req = 0;
        cpu_loop_exit(cpu);
    }
}

/* SYSENTER (SDM vol. 2B). Raises #GP(0) where IA32_SYSENTER_CS is 0. */
void memvirt_sysenter(CPUX86State *env, uintptr_t retaddr);
void memvirt_sysenter(CPUX86State *env, uintptr_t retaddr)
{
    uint32_t selector = env->sysenter_cs & 0xfffc;
    bool long_mode = (env->hflags & HF_LMA_MASK) != 0;
    uint32_t flat = DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK;

    if (selector == 0) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
    env->eflags &= ~(VM_MASK | IF_MASK | RF_MASK);
    cpu_x86_load_seg_cache(env, R_CS, selector, 0, 0xffffffff,
                           flat | DESC_CS_MASK | DESC_R_MASK |
                           (long_mode ? DESC_L_MASK : DESC_B_MASK));
    cpu_x86_load_seg_cache(env, R_SS, selector + 8, 0, 0xffffffff,
                           flat | DESC_W_MASK | DESC_B_MASK);
    env->regs[R_ESP] = long_mode ? env->sysenter_esp : (uint32_t)env->sysenter_esp;
    env->eip = long_mode ? env->sysenter_eip : (uint32_t)env->sysenter_eip;
}

/*
 * MXCSR with the exceptions that were raised since it was loaded. A result flushed to zero is an
 * underflow and inexact (SDM vol. 1 section 10.2.3.3).
 */
uint32_t memvirt_mxcsr(CPUX86State *env)
{
    int raised = get_float_exception_flags(&env->sse_status);

    env->mxcsr |= raised & 0x3d;
    if (raised & float_flag_output_denormal) {
        env->mxcsr |= float_flag_underflow | float_flag_inexact;
    }
    return env->mxcsr;
}

uint32_t helper_memvirt_mxcsr(CPUX86State *env)
{
    return memvirt_mxcsr(env);
}

/* A 16-byte operand that has to be aligned and is not. */
void memvirt_unaligned_access(CPUState *cpu, vaddr addr, MMUAccessType access_type,
                              int mmu_idx, uintptr_t retaddr);
void memvirt_unaligned_access(CPUState *cpu, vaddr addr, MMUAccessType access_type,
                              int mmu_idx, uintptr_t retaddr)
{
    raise_exception_err_ra(cpu->env_ptr, EXCP0D_GPF, 0, retaddr);
}

/* What WRFSBASE and WRGSBASE load must be canonical, in 48 bits (SDM vol. 2D, WRFSBASE). */
void helper_memvirt_check_base(CPUX86State *env, target_ulong base)
{
    if ((int64_t)base >> 47 != 0 && (int64_t)base >> 47 != -1) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}

/* MXCSR's reserved bits: those that are clear in the mask FXSAVE writes. */
void memvirt_check_mxcsr(CPUX86State *env, uint32_t mxcsr, uintptr_t retaddr)
{
    if (mxcsr & 0xffff0000) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
}
