# SPDX-License-Identifier: Apache-2.0
"""For each CPUID feature that systems use, paging apart: a guest that uses it, what it must report.

What is right is the Intel SDM's, vol. 2 (the instructions' pages), 3A (protection, the local APIC)
and 3B (debugging).
"""

from __future__ import annotations

from collections.abc import Callable

from .feature_case import (
    DB,
    GP,
    NOTHING,
    PAGE,
    PAGE_ENTRY,
    PF,
    SCRATCH,
    UD,
    FeatureCase,
    case,
    in_states,
)


def _flushes(instruction: str) -> FeatureCase:
    """A cache line's address is checked as a load's is (SDM vol. 2, CLFLUSH)."""
    lines, wanted = in_states(f"{instruction} idt", {})
    lines += [
        "mov $1, %eax; cpuid; shr $8, %ebx; and $0xFF, %ebx",
        "REPORT line, %rbx",
        f"movq $0, {PAGE_ENTRY}; mov %cr3, %rax; mov %rax, %cr3",
        f"mov ${PAGE:#x}, %ebx",
        f"ATTEMPT {instruction} 5(%rbx)",
        "REPORT absent, vector",
        "REPORT error, error",
        "REPORT at, fault_cr2",
    ]
    return case(lines, wanted | {"line": 8, "absent": PF, "error": 0, "at": PAGE + 5})


def _debugging_extensions() -> FeatureCase:
    return case(
        [
            "mov $0x20, %eax; mov %rax, %cr4",
            "ATTEMPT mov %dr4, %rax",
            "REPORT alias, vector",
            "mov $0x28, %eax; mov %rax, %cr4",
            "ATTEMPT mov %dr4, %rax",
            "REPORT no_alias, vector",
            "mov $0x81, %eax; mov %rax, %dr0; mov $0xFFFF0FF0, %eax; mov %rax, %dr6",
            "mov $0x20402, %eax; mov %rax, %dr7",  # breakpoint 0: I/O, one byte
            "ATTEMPT out %al, $0x80",
            "REPORT another_port, vector",
            "ATTEMPT out %al, $0x81",
            "REPORT port, vector",
            "mov %dr6, %r15; and $15, %r15d",
            "REPORT status, %r15",
            "ATTEMPT in $0x81, %al",
            "REPORT reading, vector",
            "xor %eax, %eax; mov %rax, %dr7",
        ],
        {"alias": NOTHING, "no_alias": UD, "another_port": NOTHING, "port": DB, "status": 1,
         "reading": DB},
    )  # fmt: skip


def _time_stamp() -> FeatureCase:
    return case(
        [
            "rdtsc; mov %eax, %ebx; mov %edx, %ecx; rdtsc",
            "sub %ebx, %eax; sbb %ecx, %edx; shl $32, %rdx; or %rdx, %rax; xor %ebp, %ebp",
            "test %rax, %rax; setg %bpl",
            "REPORT passes, %rbp",
            "mov $0x24, %eax; mov %rax, %cr4",  # TSD
            "ATTEMPT rdtsc",
            "REPORT supervisor, vector",
            "mov $user, %edi",
            "ATTEMPT jmp go_user",
            "REPORT user, vector",
            "mov $0x20, %eax; mov %rax, %cr4; mov $user, %edi",
            "ATTEMPT jmp go_user",
            "REPORT allowed, vector",
            "ret",
            "user: rdtsc",
            "ud2",
        ],
        {"passes": 1, "supervisor": NOTHING, "user": GP, "allowed": UD},
    )


def _registers() -> FeatureCase:
    return case(
        [
            "mov $0xC0000102, %ecx; mov $0x12345678, %eax; mov $0x1234, %edx; wrmsr",
            "xor %eax, %eax; xor %edx, %edx; rdmsr; shl $32, %rdx; or %rdx, %rax; mov %rax, %r15",
            "REPORT kept, %r15",
            "mov $0x1234, %ecx",
            "ATTEMPT rdmsr",
            "REPORT unknown, vector",
            "REPORT error, error",
            "mov $user, %edi",
            "ATTEMPT jmp go_user",
            "REPORT user, vector",
            "ret",
            "user: mov $0xC0000102, %ecx; rdmsr",
            "ud2",
        ],
        {"kept": 0x1234_1234_5678, "unknown": GP, "error": 0, "user": GP},
    )


def _local_apic() -> FeatureCase:
    return case(
        [
            "mov $0xFEE00000, %ebx; mov 0x20(%rbx), %eax",
            "REPORT id, %rax",
            "mov 0x30(%rbx), %eax; and $0xF0, %eax",
            "REPORT integrated, %rax",
            "mov $0x1B, %ecx; rdmsr; and $0xFFFFF800, %eax",
            "REPORT base, %rax",
            "mov $0x1B, %ecx; rdmsr; and $~0x800, %eax; wrmsr; mov $1, %eax; cpuid; shr $9, %edx",
            "and $1, %edx",
            "REPORT disabled, %rdx",
        ],
        {"id": 0, "integrated": 0x10, "base": 0xFEE0_0800, "disabled": 0},
    )


def _always_running_timer() -> FeatureCase:
    return case(
        [
            "mov $0xFEE00000, %ebx; movl $0x1FF, 0xF0(%rbx); movl $0xB, 0x3E0(%rbx)",
            "movl $0x40, 0x320(%rbx); movl $100000, 0x380(%rbx)",
            ".macro WAIT; sti; 7: hlt; jmp 7b; .endm",
            "ATTEMPT WAIT",
            "REPORT vector, vector",
            "mov 0x390(%rbx), %eax",
            "REPORT left, %rax",
        ],
        {"vector": 0x40, "left": 0},
    )


def _sysenter() -> FeatureCase:
    return case(
        [
            "mov $0x174, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr",
            "ATTEMPT sysenter",
            "REPORT without_cs, vector",
            "mov $0x174, %ecx; mov $8, %eax; xor %edx, %edx; wrmsr",
            "mov $0x175, %ecx; mov $stack - 64, %eax; wrmsr",
            "mov $0x176, %ecx; mov $entered, %eax; wrmsr",
            "mov $user, %edi",
            "ATTEMPT jmp go_user",
            "REPORT out_cs, %r12",
            "REPORT in_cs, %r13",
            "REPORT back, vector",
            "REPORT at, fault_rip",
            "ret",
            "user: sysenter",
            "entered: mov %cs, %r13d; mov $outside, %edx; mov $user_stack, %ecx; sysexitq",
            "outside: mov %cs, %r12d",
            "ud2",
        ],
        # The SYSEXIT of 64 bits takes CS from IA32_SYSENTER_CS + 32, with RPL 3.
        {"without_cs": GP, "in_cs": 8, "out_cs": 0x2B, "back": UD},
    )


def _syscall() -> FeatureCase:
    return case(
        [
            "mov $0xC0000081, %ecx; xor %eax, %eax; mov $0x00130008, %edx; wrmsr",
            "mov $0xC0000082, %ecx; mov $entered, %eax; xor %edx, %edx; wrmsr",
            "mov $0xC0000084, %ecx; mov $0x400, %eax; wrmsr",
            "mov $user, %edi",
            "ATTEMPT jmp go_user",
            "REPORT in_cs, %r12",
            "REPORT in_flags, %r13",
            "REPORT kept_flags, %r14",
            "REPORT distance, %r15",
            "REPORT back, vector",
            "REPORT out_cs, %rbp",
            "mov $0xC0000080, %ecx; rdmsr; and $~1, %eax; wrmsr",
            "ATTEMPT syscall",
            "REPORT disabled, vector",
            "ret",
            "user: std; syscall",
            "after: mov %cs, %ebp; ud2",
            "entered: mov %cs, %r12d; mov $stack - 64, %rsp; pushfq; pop %r13; and $0x400, %r13d",
            "mov %r11, %r14; and $0x400, %r14d; mov %rcx, %r15; sub $after, %r15; cld; sysretq",
        ],
        {"in_cs": 8, "in_flags": 0, "kept_flags": 0x400, "distance": 0, "back": UD,
         "out_cs": 0x23, "disabled": UD},
    )  # fmt: skip


def _segment_bases() -> FeatureCase:
    lines = [
        "mov $0x20, %eax; mov %rax, %cr4",
        "ATTEMPT rdfsbase %rax",
        "REPORT disabled, vector",
        "mov $0x10020, %eax; mov %rax, %cr4; movl $0x77, scratch + 16",
        "mov $scratch, %eax; wrfsbase %rax; mov %fs:16, %eax",
        "REPORT read, %rax",
        "movabs $0x123456789ABC, %rax; wrgsbase %rax; rdgsbase %r15",
        "REPORT kept, %r15",
        "mov $-1, %rax; wrgsbase %eax; rdgsbase %r15",
        "REPORT of_32_bits, %r15",
        "movabs $0x800000000000, %rax",
        "ATTEMPT wrfsbase %rax",
        "REPORT not_canonical, vector",
        "ret",
        *SCRATCH,
    ]
    return case(
        lines,
        {"disabled": UD, "read": 0x77, "kept": 0x1234_5678_9ABC, "of_32_bits": 0xFFFF_FFFF,
         "not_canonical": GP},
    )  # fmt: skip


def _long_mode() -> FeatureCase:
    return case(
        [
            "mov $0xC0000080, %ecx; rdmsr; and $0x500, %eax",
            "REPORT active, %rax",
            "movabs $0x123456789ABCDEF0, %r15; mov $-1, %r14; mov %r15d, %r14d",
            "REPORT extended, %r14",
            # Compatibility mode: a code segment of 32 bits, where 0x48 is `dec %eax`.
            "movabs $0x00CF9B000000FFFF, %rax; mov %rax, gdt + 0x38",
            "ljmp *compatible",
            ".code32",
            "inside: mov $5, %eax; .byte 0x48; nop; mov %eax, %ebx; ljmp $8, $outside",
            ".code64",
            "outside: mov %ebx, %r15d",
            "REPORT compatible, %r15",
            "ret",
            ".data",
            "compatible: .long inside; .word 0x38",
            ".text",
        ],
        {"active": 0x500, "extended": 0x9ABC_DEF0, "compatible": 4},
    )


def _hypervisor() -> FeatureCase:
    return case(
        [
            "mov $0x40000000, %eax; cpuid; mov %ebx, %r12d; mov %ecx, %r13d; mov %edx, %r14d",
            "REPORT b, %r12",
            "REPORT c, %r13",
            "REPORT d, %r14",
        ],
        {  # "VMwareVMware"
            "b": 0x6177_4D56,
            "c": 0x4D56_6572,
            "d": 0x6572_6177,
        },
    )


SYSTEM_FEATURES: dict[str, Callable[[], FeatureCase]] = {
    "HYPERVISOR": _hypervisor,
    "DE": _debugging_extensions,
    "TSC": _time_stamp,
    "MSR": _registers,
    "APIC": _local_apic,
    "SEP": _sysenter,
    "CLFSH": lambda: _flushes("clflush"),
    "FSGSBASE": _segment_bases,
    "CLFLUSHOPT": lambda: _flushes("clflushopt"),
    "CLWB": lambda: _flushes("clwb"),
    "SYSCALL": _syscall,
    "LM": _long_mode,
    "ARAT": _always_running_timer,
}
