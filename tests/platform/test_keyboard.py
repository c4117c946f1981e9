# SPDX-License-Identifier: Apache-2.0
"""The PS/2 keyboard behind its controller: commands, queue, interrupts; guests that read it."""

from __future__ import annotations

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.platform.keyboard import QUEUE_BYTES
from memvirt.platform.pc import PcState, new_pc, pc_interrupt_pending, pc_keyboard_input
from memvirt.platform.ports import io_read, io_write
from memvirt.platform.scan_codes import scan_codes
from tests.small_guest import PAGING_MODES, small_guest


def make() -> PcState:
    return new_pc()[0]


def read_all(pc: PcState) -> list[int]:
    values = []
    while io_read(pc, 0x64, 1, 0) & 1:
        values.append(io_read(pc, 0x60, 1, 0))
    return values


def test_what_a_terminal_sends_as_keys() -> None:
    def keys(typed: bytes) -> list[str]:
        pressed = list(scan_codes(typed))
        assert b"".join(key for key, _ in pressed) == typed
        return [codes.hex() for _, codes in pressed if codes]

    assert keys(b"a\r") == ["1cf01c", "5af05a"]
    assert keys(b"A") == ["121cf01cf012"]
    assert keys(b"\x03\x00") == ["1421f021f014", "141ef01ef014"]  # Ctrl-C, Ctrl-@
    assert keys(b"\x1b[A\x1bOP\x1b\x7f") == ["e075e0f075", "05f005", "76f076", "66f066"]
    assert keys("ä€".encode()) == []
    for code in range(128):
        assert len(keys(bytes([code]))) == 1, code


def test_every_key_comes_as_set_1_and_as_set_2() -> None:
    pc = make()
    assert pc_keyboard_input(pc, b"aZ\x1b[A") == len(b"aZ\x1b[A")
    assert read_all(pc) == [0x1E, 0x9E, 0x2A, 0x2C, 0xAC, 0xAA, 0xE0, 0x48, 0xE0, 0xC8]
    io_write(pc, 0x64, 1, 0x60, 0)
    io_write(pc, 0x60, 1, 0x25, 0)  # translation off
    pc_keyboard_input(pc, b"a")
    assert read_all(pc) == [0x1C, 0xF0, 0x1C]


def test_the_keyboards_commands() -> None:
    pc = make()

    def command(*values: int) -> list[int]:
        for value in values:
            io_write(pc, 0x60, 1, value, 0)
        return read_all(pc)

    assert command(0xFF) == [0xFA, 0xAA]
    assert command(0xF2) == [0xFA, 0xAB, 0x41]
    assert command(0xED, 0x07) == [0xFA, 0xFA]
    assert command(0xF0, 0x00) == [0xFA, 0xFA, 0x41]
    assert command(0xF0, 0x03) == [0xFA, 0xFE]
    assert command(0xEE) == [0xEE]
    assert command(0x17) == [0xFE]
    assert command(0xF5) == [0xFA]
    assert pc_keyboard_input(pc, b"a") == 0  # nothing is scanned
    assert command(0xF4) == [0xFA]
    assert pc_keyboard_input(pc, b"a") == 1


def test_the_controller_holds_the_keyboard_back_and_answers_in_between() -> None:
    pc = make()
    io_write(pc, 0x64, 1, 0xAD, 0)
    pc_keyboard_input(pc, b"a")
    assert read_all(pc) == []
    io_write(pc, 0x64, 1, 0xAE, 0)
    io_write(pc, 0x64, 1, 0xAA, 0)  # the answer waits behind the byte that is there
    assert read_all(pc) == [0x1E, 0x55, 0x9E]


def test_a_full_queue_takes_whole_keys_only() -> None:
    pc = make()
    taken = pc_keyboard_input(pc, b"a" * QUEUE_BYTES)
    assert 0 < taken < QUEUE_BYTES
    assert read_all(pc) == [0x1E, 0x9E] * taken


def test_each_byte_is_an_edge() -> None:
    pc = make()
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFD)):
        io_write(pc, port, 1, value, 0)
    pc_keyboard_input(pc, b"ab")
    for code in (0x1E, 0x9E, 0x30, 0xB0):
        assert pc_interrupt_pending(pc)
        io_write(pc, 0x20, 1, 0x0C, 0)  # poll: takes the interrupt
        assert io_read(pc, 0x20, 1, 0) == 0x81
        assert io_read(pc, 0x60, 1, 0) == code
        io_write(pc, 0x20, 1, 0x20, 0)
    assert not pc_interrupt_pending(pc)


# Polls four bytes, as the simplest kernels do; then takes four more by IRQ 1, asleep in between.
_READER = """
test:   mov $4, %ebx
1:      in $0x64, %al
        test $1, %al
        jz 1b
        call byte
        dec %ebx
        jnz 1b
        mov $0x21, %edi
        mov $on_key, %esi
        call set_gate
        mov $0x11, %al
        out %al, $0x20
        mov $0x20, %al
        out %al, $0x21
        mov $4, %al
        out %al, $0x21
        mov $1, %al
        out %al, $0x21
        mov $0xFD, %al
        out %al, $0x21
        mov $4, %ebx
2:      sti
        hlt
        cli
        test %ebx, %ebx
        jnz 2b
        mov codes, %rax
        REPORT codes, %rax
        ret
byte:   in $0x60, %al
        shlq $8, codes
        mov %al, codes
        ret
on_key: push %rax
        call byte
        dec %ebx
        mov $0x20, %al
        out %al, $0x20
        pop %rax
        iretq
        .bss
codes:  .skip 8
        .text"""


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_a_guest_reads_keys_by_polling_and_by_interrupt(paging: str) -> None:
    machine = Machine("64M", scatter_seed=None if paging == "flat" else 3)
    with VirtualMachine(machine, memory="16M", paging=paging) as vm:
        vm.load(small_guest(_READER))
        vm.wakes_on_input = True
        typed = list(b"hiok")
        for _ in range(50):
            if vm.run_quantum(1_000_000) is not None:
                break
            if typed:
                assert vm.press(bytes([typed.pop(0)])) == 1
        assert vm.outcome is not None
        assert vm.outcome.succeeded, vm.outcome
        assert b"codes=23a31797189825a5" in bytes(vm.serial_log)
