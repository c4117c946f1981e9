# SPDX-License-Identifier: Apache-2.0
"""All pairs of events in one block of code: each happens once, in the program's order.

The engine stops at the end of a block with everything that the block ran into; the run loop's one
ordered list says what of it has happened (``run.py: _after_engine``). By the architecture events
come in the order of their instructions, and an instruction that faulted has not been executed (SDM
vol. 3A sections 6.5 and 6.9). Here each event's handler notes it and goes on behind it.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from memvirt import EndReason, VirtualMachine
from tests.small_guest import PAGING_MODES, VIRTUALIZED, run_qemu, run_small, small_guest

# For each event its instruction, and what its handler notes: vector, or what else happened, in the
# low byte, and the error code above it.
_EVENTS = {
    "load": ("mov (%rbx), %r10", 14 | 0 << 8),
    "store": ("mov %r10, (%rbx)", 14 | 2 << 8),
    "write-protected": ("mov %r10, (%rdi)", 14 | 3 << 8),
    "fetch": ("call *%rbx", 14 | 0x10 << 8),
    "non-canonical": ("mov 0(%rbp), %r10", 13),
    "int3": ("int3", 3),
    "int": ("int $0x40", 0x40),
    "invalid": ("ud2", 6),
    "divide": ("div %r13b", 0),
    "syscall": ("syscall", 0xA0),
    "console": ("out %al, %dx", None),
    "port-read": ("in $0x64, %al\n mov $10, %al", None),
    "first-touch": ("incl (%r14)", None),
    "code-write": ("incb 9f+1(%rip)\n 9: mov $0, %r10b", None),
}
_NOTE = "shlq $16, log; orq ${code:#x}, log"

# REPORT changes these: a newline for the console, the read-only GiB.
_BEFORE = "movq $0, log\n mov $0x3F8, %edx\n mov $10, %al\n mov $0x40000000, %edi"

_GUEST = """
test:   andq $~2, pointers + 8                  # the second GiB is read-only
        mov %cr3, %rcx
        mov %rcx, %cr3
        mov $0xC0000081, %ecx                   # STAR: kernel 0x08
        mov $0x00130008, %edx
        xor %eax, %eax
        wrmsr
        mov $0xC0000082, %ecx
        mov $entry, %eax
        xor %edx, %edx
        wrmsr
        mov $0x8000000000, %rbx                 # not mapped
        mov $0x8000000000000000, %rbp
        xor %r13d, %r13d
        mov $0x800000, %r14d
        {gates}
        {pairs}
        ret
entry:  {note_syscall}
        jmp *%rcx
on_0:   {note_0}
        addq $3, (%rsp)
        iretq
on_3:   {note_3}
        iretq
on_64:  {note_64}
        iretq
on_6:   {note_6}
        addq $2, (%rsp)
        iretq
on_13:  {note_13}
        addq $8, %rsp
        addq $4, (%rsp)
        iretq
on_14:  push %rax
        mov 8(%rsp), %rax                       # the error code
        shl $8, %eax
        or $14, %eax
        shlq $16, log
        or %rax, log
        pop %rax
        add $8, %rsp
        cmp %rbx, (%rsp)
        je 1f
        addq $3, (%rsp)
        iretq
1:      push %rax                               # a call that was executed, to nowhere: return
        mov 32(%rsp), %rax                      # its stack pointer
        mov (%rax), %rax
        mov %rax, 8(%rsp)
        addq $8, 32(%rsp)
        pop %rax
        iretq
        .data
        .balign 8
log:    .quad 0
        .text
"""


def _guest(events: list[str]) -> tuple[bytes, dict[str, int]]:
    """An image that runs all pairs of ``events``, and what it is to report of each."""
    pairs, expected = [], {}
    for first, second in product(events, repeat=2):
        name = f"{first}_{second}".replace("-", "")
        blocks = "\n".join(_EVENTS[event][0] for event in (first, second))
        pairs.append(f"{_BEFORE}\n jmp 1f\n1: {blocks}\n jmp 1f\n1: REPORT {name}, log")
        noted = [code for _, code in (_EVENTS[first], _EVENTS[second]) if code is not None]
        expected[name] = sum(code << 16 * at for at, code in enumerate(reversed(noted)))
    gates = "\n".join(
        f"mov ${vector}, %edi\n mov $on_{vector}, %esi\n call set_gate"
        for vector in (0, 3, 6, 13, 14, 64)
    )
    notes = {f"note_{vector}": _NOTE.format(code=vector) for vector in (0, 3, 6, 13, 64)}
    source = _GUEST.format(
        gates=gates, pairs="\n".join(pairs), note_syscall=_NOTE.format(code=0xA0), **notes
    )
    return small_guest(source), expected


@pytest.fixture(scope="module")
def guest() -> tuple[bytes, dict[str, int]]:
    return _guest(list(_EVENTS))


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_each_pair_happens_once_in_order(paging: str, guest: tuple[bytes, dict[str, int]]) -> None:
    image, expected = guest
    ran = run_small(image, paging)
    assert ran.reason is EndReason.SUCCESS
    assert ran.values == expected


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_whatever_the_host_takes_meanwhile(
    paging: str, guest: tuple[bytes, dict[str, int]]
) -> None:
    """Every event, with the host's own between them: the end of a quantum, pages that are gone."""
    image, expected = guest

    def take_all(vm: VirtualMachine) -> None:
        vm.vmm.unmap(np.arange(vm.vmm.pmap.pages))

    ran = run_small(image, paging, between=take_all, quantum_ns=3000, most_quanta=100_000)
    assert ran.reason is EndReason.SUCCESS
    assert ran.values == expected


@pytest.mark.qemu
def test_qemu_has_the_same_order(guest: tuple[bytes, dict[str, int]]) -> None:
    image, expected = guest
    status, values = run_qemu(image)
    assert status == 0x10
    assert values == expected
