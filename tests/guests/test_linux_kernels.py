# SPDX-License-Identifier: Apache-2.0
"""Kernels of Debian other than its release's own: their workloads give the verdict."""

from __future__ import annotations

import re

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.vmm.check import check_machine

from .conftest import LinuxGuest, linux_guest_or_skip

MODES = ["shadow", "nested"]


def run_workloads(guest: LinuxGuest, paging: str, append: str = "") -> str:
    """Boot, run everything, audit at the end; the console. The guest has verified itself."""
    machine = Machine("384M", scatter_seed=8)
    with VirtualMachine(machine, memory="256M", paging=paging) as vm:
        vm.load(guest.kernel, initrd=guest.initrd, append=f"console=ttyS0 workload=all {append}")
        vm.run(timeout=300)
        console = bytes(vm.serial_log).decode("ascii", "replace")
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, console[-3000:]
        assert check_machine(machine, [vm.vmm]) == []
    assert machine.free_frames == machine.frames
    return console


@pytest.mark.parametrize("paging", MODES)
def test_linux_of_backports(newer_linux_guest: LinuxGuest, paging: str) -> None:
    """The cloud flavour of 6.12, whose decompressor uses BMI2 before it sets CR4.OSFXSR."""
    console = run_workloads(newer_linux_guest, paging)
    assert "linux-guest: Linux 6.12" in console


@pytest.mark.acceptance
@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("flavour", ["generic", "rt"])
def test_other_flavours_of_backports(flavour: str, paging: str) -> None:
    console = run_workloads(linux_guest_or_skip(KERNEL="6.12", FLAVOUR=flavour), paging)
    assert ("-rt-amd64" in console) == (flavour == "rt")


@pytest.mark.acceptance
@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("flavour", ["686", "686-pae"])
def test_kernels_of_i386(flavour: str, paging: str) -> None:
    """By the 32-bit boot protocol; page tables of two levels, and of PAE."""
    console = run_workloads(linux_guest_or_skip(FLAVOUR=flavour), paging)
    assert f"-{flavour}," in console


@pytest.mark.parametrize("paging", MODES)
def test_32_bit_programs_in_64_bit_linux(linux_guest: LinuxGuest, paging: str) -> None:
    """Debian's busybox of i386: compatibility mode, the kernel entered by SYSENTER."""
    if not linux_guest.has_32_bit_programs:
        pytest.skip("apt does not reach the packages of i386")
    machine = Machine("320M", scatter_seed=9)
    with VirtualMachine(machine, memory="256M", paging=paging) as vm:
        append = "console=ttyS0 quiet workload=programs32"
        vm.load(linux_guest.kernel, initrd=linux_guest.initrd, append=append)
        vm.run(timeout=120)
        console = bytes(vm.serial_log)
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, console[-3000:]
        assert b"programs32: verified" in console


@pytest.mark.parametrize("paging", MODES)
def test_timer_and_console_through_the_io_apic(linux_guest: LinuxGuest, paging: str) -> None:
    """Without the local APIC's timer the 8254 is Linux's clock, by input 2 of the I/O APIC."""
    machine = Machine("320M", scatter_seed=9)
    with VirtualMachine(machine, memory="256M", paging=paging) as vm:
        append = "console=ttyS0 nolapic_timer"
        vm.load(linux_guest.kernel, initrd=linux_guest.initrd, append=append)
        vm.wakes_on_input = True
        for _ in range(1000):
            if b"guest# " in vm.serial_log or vm.run_quantum() is not None:
                break
        start = len(vm.serial_log)
        vm.type(b"cat /proc/interrupts; sleep 1; poweroff\n")
        vm.run(timeout=120)
        console = bytes(vm.serial_log[start:]).decode("ascii", "replace")
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.POWER_OFF, console[-3000:]
    counts = re.findall(r"^\s*\d+:\s+(\d+)\s+IO-APIC\s+(\d+)-edge\s+(\S+)", console, re.MULTILINE)
    arrived = {name: int(count) for count, _, name in counts}
    assert {(pin, name) for _, pin, name in counts} >= {("2", "timer"), ("4", "ttyS0")}
    assert arrived["timer"] > 100
    assert arrived["ttyS0"] > 10
