# SPDX-License-Identifier: Apache-2.0
"""A guest that prints without end does not fill the host's memory; who listens hears all of it."""

from __future__ import annotations

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.vm import virtual_machine
from tests.small_guest import flat_guest

_BYTES = 30_000
_PRINTS = flat_guest(
    f"""    mov ${_BYTES}, %ecx
    1:  mov $0x3F8, %edx
        mov %cl, %al
        out %al, %dx
        dec %ecx
        jnz 1b
        mov $0x10, %al
        out %al, $0xF4
        hlt"""
)


def test_the_log_keeps_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "SERIAL_LOG_BYTES", 1000)
    heard = bytearray()
    longest = 0

    def listen(data: bytes) -> None:
        nonlocal longest
        heard.extend(data)
        longest = max(longest, len(vm.serial_log))

    with VirtualMachine(Machine("64M"), memory="4M", serial=listen) as vm:
        vm.load(_PRINTS, protocol="flat")
        assert vm.run().reason is EndReason.SUCCESS
        assert bytes(heard) == bytes(count & 0xFF for count in range(_BYTES, 0, -1))
        assert 1000 <= len(vm.serial_log) <= 2000
        assert longest <= 2000
        assert vm.serial_lost + len(vm.serial_log) == _BYTES
        assert heard.endswith(vm.serial_log)
