# SPDX-License-Identifier: Apache-2.0
"""What happened first counts: verdicts, system calls and traps, whatever their block runs into."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.reserve import FramesWanted
from tests.small_guest import PAGING_MODES, VIRTUALIZED, flat_guest, run_small, small_guest

_VERDICTS = {
    "success": ("mov $0x10, %al; out %al, $0xF4", EndReason.SUCCESS),
    "failure": ("mov $0x11, %al; out %al, $0xF4", EndReason.FAILURE),
    "power-off": ("mov $0x604, %edx; mov $0x2000, %eax; out %ax, %dx", EndReason.POWER_OFF),
    "reset": ("mov $0xCF9, %edx; mov $6, %al; out %al, %dx", EndReason.RESET),
    "keyboard-reset": ("mov $0xFE, %al; out %al, $0x64", EndReason.RESET),
    "fast-reset": ("mov $1, %al; out %al, $0x92", EndReason.RESET),
}
# What the same block goes on to.
_AFTER = {
    "load-fault": "mov (%rbx), %rcx",
    "store-fault": "mov %rcx, (%rbx)",
    "non-canonical": "mov (%rbp), %rcx",
    "int3": "int3",
    "int": "int $0x40",
    "invalid": "ud2",
    "syscall": "syscall",
    "other-exit": "mov $0x77, %al; out %al, $0xF4",
    "other-reset": "mov $0xFE, %al; out %al, $0x64",
    "console": "mov $0x3F8, %edx; out %al, %dx",
    "port-read": "in $0x64, %al",
    "cpuid": "cpuid",
    "fetch-fault": "jmp *%rbx",
    "halt": "hlt",
}


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("verdict", _VERDICTS)
def test_a_verdict_is_never_lost(verdict: str, paging: str) -> None:
    ends, reason = _VERDICTS[verdict]
    for after, instruction in _AFTER.items():
        image = small_guest(
            f"""test: mov $0x8000000000, %rbx
                mov $0x8000000000000000, %rbp
                jmp 1f
            1:  {ends}
                {instruction}
            2:  cli
                hlt
                jmp 2b"""
        )
        ran = run_small(image, paging, most_quanta=3)
        assert ran.reason is reason, (after, ran)
        if verdict in ("success", "failure"):
            assert ran.outcome.exit_value == {"success": 0x10, "failure": 0x11}[verdict], after


@pytest.mark.parametrize("paging", VIRTUALIZED)
@pytest.mark.parametrize("verdict", ["failure", "power-off"])
def test_a_verdict_survives_pages_that_the_host_has_taken(verdict: str, paging: str) -> None:
    """The block goes on to a page that is not there: whenever the host takes it."""
    ends, reason = _VERDICTS[verdict]
    image = small_guest(
        f"""test: mov $200000, %ecx
        1:  dec %ecx
            jnz 1b
            mov $0xA00000, %ebx
            mov $0x5A, %al
            mov %al, (%rbx)
            mov $100000, %ecx
        3:  dec %ecx
            jnz 3b
            {ends}
            mov (%rbx), %al
        2:  cli
            hlt
            jmp 2b"""
    )

    def take_all(vm: VirtualMachine) -> None:
        vm.vmm.unmap(np.arange(vm.vmm.pmap.pages))

    ran = run_small(image, paging, between=take_all, quantum_ns=20_000, most_quanta=200)
    assert ran.reason is reason


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_the_rest_of_the_block_has_no_effect_on_memory(paging: str) -> None:
    """As on a machine whose power is gone. (In flat mode the translations are not ours to take.)"""
    image = flat_guest(
        """ mov $0x10, %al
            mov $0x200000, %ebx
            movl $1, (%rbx)
            jmp 1f
        1:  out %al, $0xF4
            movl $2, (%rbx)
        2:  hlt
            jmp 2b"""
    )
    with VirtualMachine(Machine("64M"), memory="16M", paging=paging) as vm:
        vm.load(image, protocol="flat")
        assert vm.run(timeout=60).reason is EndReason.SUCCESS
        assert vm.vmm.read_physical(0x200000, 4) == b"\1\0\0\0"


_SYSCALL = """
        .set FMASK, {fmask}
test:   mov $0xC0000081, %ecx           # STAR: kernel 0x08, user 0x13
        xor %eax, %eax
        mov $0x00130008, %edx
        wrmsr
        mov $0xC0000082, %ecx           # LSTAR
        mov $entry, %eax
        xor %edx, %edx
        wrmsr
        mov $0xC0000084, %ecx           # FMASK
        mov $FMASK, %eax
        wrmsr
        mov $1, %edi                    # #DB
        mov $trap, %esi
        call set_gate
        pushfq
        orq $0x100, (%rsp)
        popfq                           # the trap comes after the next instruction
        syscall
back:   nop
after:  nop
        pushfq
        andq $~0x100, (%rsp)
        popfq
        mov %dr6, %rax
        mov %rax, dr6
        REPORT entered, entered
        REPORT r11, seen_r11
        REPORT traps, traps
        REPORT first, first
        REPORT entry, $entry
        REPORT dr6, dr6
        REPORT after, $after
        ret
entry:  incq entered
        mov %r11, seen_r11
        jmp *%rcx
trap:   incq traps
        cmpq $0, first
        jne 1f
        push %rax
        mov 8(%rsp), %rax
        mov %rax, first
        pop %rax
1:      andq $~0x100, 16(%rsp)          # no further step
        iretq
        .data
entered: .quad 0
seen_r11: .quad 0
traps: .quad 0
first: .quad 0
dr6: .quad 0
        .text
"""


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_single_stepping_over_syscall_makes_the_call(paging: str) -> None:
    """FMASK clears TF, so the step ends with the call; R11 has it (SDM vol. 2B, SYSCALL)."""
    values = run_small(small_guest(_SYSCALL.format(fmask="0x300")), paging).values
    assert values["entered"] == 1
    assert values["r11"] & 0x100
    assert values["traps"] == 0
    assert values["dr6"] & 1 << 14 == 0


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_trap_that_syscall_does_not_mask_comes_at_the_handler(paging: str) -> None:
    values = run_small(small_guest(_SYSCALL.format(fmask="0x200")), paging).values
    assert values["entered"] == 1
    assert values["traps"] == 1
    assert values["first"] == values["entry"]


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("quantum", [1, 7, 50])
def test_every_guest_comes_on_however_short_its_quanta(quantum: int, paging: str) -> None:
    block = "\n".join(["nop"] * 300)  # 75 ns of virtual time in one block
    image = flat_guest(f"{block}\n jmp 1f\n1: {block}\n mov $0x10, %al\n out %al, $0xF4\n hlt")
    ran = run_small(image, paging, protocol="flat", quantum_ns=quantum, most_quanta=2000)
    assert ran.reason is EndReason.SUCCESS


def test_a_quantum_of_nothing_is_refused() -> None:
    with (
        VirtualMachine(Machine("64M"), memory="16M") as vm,
        pytest.raises(ValueError, match="1 ns"),
    ):
        vm.run_quantum(0)


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize(("instruction", "length"), [("int $0x41", 2), ("int3", 1), ("int $3", 2)])
def test_a_refused_software_interrupt_is_reported_at_its_instruction(
    instruction: str, length: int, paging: str
) -> None:
    """Also if the host has taken the program's page while the delivery waited for the IDT's."""
    vector = 0x41 if "41" in instruction else 3
    image = small_guest(
        f"""test: movb $0x8E, idt + {16 * vector + 5}     # DPL 0: not for programs
            mov $program, %edi
            ATTEMPT jmp go_user
            REPORT vector, vector
            REPORT error, error
            mov $here, %eax
            mov fault_rip, %rdx
            sub %rax, %rdx
            mov %rdx, fault_rip
            REPORT offset, fault_rip
            ret
            .balign 4096
        program:
            mov $300, %ecx
        1:  dec %ecx
            jnz 1b
        here: {instruction}
            hlt
            .balign 4096"""
    )

    taken = 0

    def take_idt(vm: VirtualMachine) -> None:
        """Let the next delivery wait for frames, and take every page before it goes on."""
        nonlocal taken
        vmm, everything = vm.vmm, np.arange(vm.vmm.pmap.pages)
        real = VirtualMachineMonitor.bring_back

        def bring_back(ppn: int, *, write: bool) -> None:
            nonlocal taken
            if vm.processor.state.event_vector == vector and not taken:
                taken += 1
                raise FramesWanted
            real(vmm, ppn, write=write)

        if vm.paging.name == "FLAT":
            return
        vmm.bring_back = bring_back  # type: ignore[method-assign]
        if vm.waiting:
            vmm.unmap(everything)
            vm.resume_quantum()
        vmm.unmap(everything)

    ran = run_small(image, paging, between=take_idt, quantum_ns=100, most_quanta=20_000)
    assert ran.values == {"vector": 13, "error": vector * 8 + 2, "offset": 0}
    assert taken == (paging != "flat")
