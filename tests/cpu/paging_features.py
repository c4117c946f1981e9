# SPDX-License-Identifier: Apache-2.0
"""For each CPUID feature of paging, a guest that uses it, and what it must report.

What is right is the Intel SDM's, vol. 3A chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable

from .feature_case import GP, NOTHING, PAGE, PAGE_ENTRY, PAGE_FRAME, PF, FeatureCase, case


def _map(bits: int) -> str:
    return (
        f"movabs ${PAGE_FRAME | bits:#x}, %rax; mov %rax, {PAGE_ENTRY};"
        "mov %cr3, %rax; mov %rax, %cr3;"
        f"mov ${PAGE:#x}, %ebx; mov ${PAGE_FRAME:#x}, %ebp"
    )


def _global_pages() -> FeatureCase:
    return case(
        [
            "movl $1, 0x200000; movl $2, 0x400000",
            "mov $0xA0, %eax; mov %rax, %cr4; mov %cr4, %rax; and $0x80, %eax",
            "REPORT enabled, %rax",
            _map(0x187),
            "mov (%rbx), %eax",
            "REPORT before, %rax",
            f"movq $0x400187, {PAGE_ENTRY}; mov $0x20, %eax; mov %rax, %cr4; mov (%rbx), %eax",
            "REPORT all_dropped, %rax",
            f"mov $0xA0, %eax; mov %rax, %cr4; movq $0x200187, {PAGE_ENTRY}; invlpg (%rbx)",
            "mov (%rbx), %eax",
            "REPORT one_dropped, %rax",
        ],
        {"enabled": 0x80, "before": 1, "all_dropped": 2, "one_dropped": 1},
    )


def _memory_types() -> FeatureCase:
    return case(
        [
            "mov $0x277, %ecx; rdmsr; shl $32, %rdx; or %rdx, %rax; mov %rax, %r15",
            "REPORT after_reset, %r15",
            "mov $0x277, %ecx; mov $0x00070106, %eax; mov $0x00070406, %edx; wrmsr; rdmsr",
            "REPORT kept, %rax",
            "mov $0x277, %ecx; mov $0x00070206, %eax; mov $0x00070406, %edx",
            "ATTEMPT wrmsr",
            "REPORT no_type, vector",
            "movl $7, 0x200000",
            _map(0x1087),  # PAT of a large page
            "mov (%rbx), %eax",
            "REPORT read, %rax",
        ],
        {"after_reset": 0x0007_0406_0007_0406, "kept": 0x0007_0106, "no_type": GP, "read": 7},
    )


def _supervisor_execution() -> FeatureCase:
    return case(
        [
            "movb $0xC3, 0x200000; movq $0x83, directory",  # ret, in a user's page; our own is not
            _map(0x87),
            "ATTEMPT call *%rbx",
            "REPORT before, vector",
            "mov $0x100020, %eax; mov %rax, %cr4",
            "ATTEMPT call *%rbx",
            "REPORT users, vector",
            "REPORT error, error",
            "REPORT at, fault_cr2",
            "mov (%rbx), %eax; and $0xFF, %eax",
            "REPORT readable, %rax",
            _map(0x83),
            "ATTEMPT call *%rbx",
            "REPORT supervisors, vector",
        ],
        {"before": NOTHING, "users": PF, "error": 0x11, "at": PAGE, "readable": 0xC3,
         "supervisors": NOTHING},
    )  # fmt: skip


def _supervisor_access() -> FeatureCase:
    return case(
        [
            "movl $9, 0x200000; movq $0x83, directory",
            _map(0x87),
            "mov $0x200020, %eax; mov %rax, %cr4",
            "ATTEMPT mov (%rbx), %eax",
            "REPORT read, vector",
            "REPORT read_error, error",
            "ATTEMPT movl $1, (%rbx)",
            "REPORT write, vector",
            "REPORT write_error, error",
            "stac",
            "ATTEMPT mov (%rbx), %r12d",
            "REPORT allowed, vector",
            "REPORT value, %r12",
            "clac",
            "ATTEMPT mov (%rbx), %eax",
            "REPORT again, vector",
            "mov $0x20, %eax; mov %rax, %cr4",
            "ATTEMPT mov (%rbx), %eax",
            "REPORT off, vector",
        ],
        {"read": PF, "read_error": 1, "write": PF, "write_error": 3, "allowed": NOTHING,
         "value": 9, "again": PF, "off": NOTHING},
    )  # fmt: skip


def _no_execution() -> FeatureCase:
    return case(
        [
            "movb $0xC3, 0x200000",
            _map(1 << 63 | 0x87),
            "ATTEMPT call *%rbx",
            "REPORT execute, vector",
            "REPORT error, error",
            "mov (%rbx), %eax; and $0xFF, %eax",
            "REPORT readable, %rax",
            "mov $0xC0000080, %ecx; rdmsr; and $~0x800, %eax; wrmsr",
            "mov %cr3, %rax; mov %rax, %cr3",
            "ATTEMPT mov (%rbx), %eax",
            "REPORT reserved, vector",
            "REPORT reserved_error, error",
        ],
        {"execute": PF, "error": 0x11, "readable": 0xC3, "reserved": PF, "reserved_error": 9},
    )


def _gigabyte_pages() -> FeatureCase:
    return case(
        [
            "movl $0x31, 0x200000; movl $0x32, 0x400000",
            "movq $0x87, pointers + 8; mov %cr3, %rax; mov %rax, %cr3; mov $0x40200000, %ebx",
            "mov (%rbx), %eax",
            "REPORT first, %rax",
            "mov 0x200000(%rbx), %eax",
            "REPORT second, %rax",
            "movq $0x2087, pointers + 8; mov %cr3, %rax; mov %rax, %cr3",
            "ATTEMPT mov (%rbx), %eax",
            "REPORT reserved, vector",
            "REPORT error, error",
        ],
        {"first": 0x31, "second": 0x32, "reserved": PF, "error": 9},
    )


# In 32-bit protected mode without paging: a root whose first 4 MiB map memory onto themselves.
_PROTECTED = """
test:   movl $0x83, root
        movl $0x31, 0x200000
        movl $0x32, 0x600000
        mov $0x10, %eax
        mov %eax, %cr4
        mov $root, %eax
        mov %eax, %cr3
        movl $ENTRY, root + 4 * 256             # 1 GiB
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        ATTEMPT mov 0x40200000, %ebp
        REPORT vector, vector
        REPORT error, error
        movl $-1, %ebx
        cmpl $-1, vector
        jne 1f
        xor %ebx, %ebx
        cmp $0x31, %ebp
        je 1f
        inc %ebx
        cmp $0x32, %ebp
        je 1f
        inc %ebx
1:      REPORT read, %ebx                       # 0: at 0x200000, 1: at 0x600000, 2: neither
        ret
        .bss
        .balign 4096
root:   .skip 4096
        .text"""
_NONE = 0xFFFF_FFFF


def _protected(entry: int, wanted: dict[str, int]) -> FeatureCase:
    return FeatureCase(_PROTECTED.replace("$ENTRY", f"${entry:#x}"), wanted, bits=32)


_PAE = """
test:   movl $directory + 1, root
        movl $directory + 1, root + 8
        movl $0x83, directory                   # 2 MiB onto themselves
        movl $0x200083, directory + 8
        movl $0x31, 0x200000
        mov $0x20, %eax
        mov %eax, %cr4
        mov $root, %eax
        mov %eax, %cr3
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        mov 0x40200000, %eax
        REPORT read, %eax
        ATTEMPT mov 0x40400000, %eax
        REPORT absent, vector
        REPORT error, error
        ret
        .bss
        .balign 4096
root:   .skip 4096
directory: .skip 4096
        .text"""


PAGING_FEATURES: dict[str, Callable[[], FeatureCase]] = {
    "PSE": lambda: _protected(0x40_0083, {"vector": _NONE, "read": 1}),
    "PAE": lambda: FeatureCase(_PAE, {"read": 0x31, "absent": PF, "error": 0}, bits=32),
    "PGE": _global_pages,
    "PAT": _memory_types,
    # Physical address 4 GiB, where this machine has no memory: not the first 4 MiB again.
    "PSE-36": lambda: _protected(0x2083, {"vector": _NONE, "read": 2}),
    "SMEP": _supervisor_execution,
    "SMAP": _supervisor_access,
    "NX": _no_execution,
    "PDPE1GB": _gigabyte_pages,
}
