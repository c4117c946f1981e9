# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel, unmodified, in both paging modes: its own workloads give the verdict."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.host.host import Remapper
from memvirt.scenario.keys import RemapOptions
from memvirt.vmm.check import check_machine

from .conftest import LinuxGuest

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
WORKLOADS = ["compute", "signals", "mappings", "processes", "cache", "compile", "fill", "idle"]
CHECK_EVERY = 40  # quanta of 10 ms


def boot(guest: LinuxGuest, paging: PagingMode, append: str, machine: Machine) -> VirtualMachine:
    vm = VirtualMachine(machine, memory="256M", paging=paging)
    vm.load(guest.kernel, initrd=guest.initrd, append=f"console=ttyS0 {append}")
    return vm


def console(vm: VirtualMachine) -> str:
    return bytes(vm.serial_log).decode("ascii", "replace")


def run(vm: VirtualMachine, seconds: float = 240) -> None:
    """To the end, auditing the invariants on the way."""
    quanta = 0

    def between(vm: VirtualMachine) -> None:
        nonlocal quanta
        quanta += 1
        if quanta % CHECK_EVERY == 0:
            assert check_machine(vm.machine, [vm.vmm]) == []

    vm.run(timeout=seconds, on_quantum=between)
    assert check_machine(vm.machine, [vm.vmm]) == []


def verdicts(text: str) -> list[str]:
    """What the guest says of each workload, without its times."""
    lines = re.findall(r"^linux-guest: (.*)$", text.replace("\r", ""), re.MULTILINE)
    return [
        line.split(" after ")[0]
        for line in lines
        if re.match(r"\w+: (verified|FAILED|\d+ (children|rounds|files))|verdict", line)
    ]


@pytest.mark.parametrize("paging", MODES)
def test_every_workload_verifies(linux_guest: LinuxGuest, paging: PagingMode) -> None:
    machine = Machine("384M", scatter_seed=1)
    with boot(linux_guest, paging, "quiet workload=all", machine) as vm:
        # Once its init runs, the guest has its memory and the machine has spent less on it.
        while b"linux-guest: Linux" not in vm.serial_log and vm.run_quantum() is None:
            pass
        start = re.search(r"Linux (\S+), (\d+) KiB of memory", console(vm))
        assert start, console(vm)[-2000:]
        assert 200 << 10 < int(start[2]) <= 256 << 10
        used = machine.frames - machine.free_frames
        assert used * 4 < 160 << 10
        run(vm)
        text = console(vm)
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, text[-3000:]
        for name in WORKLOADS:
            assert f"linux-guest: {name}: verified" in text
        assert not re.search(r"BUG:|Call Trace|WARNING:|Oops", text), text
        statistics = vm.vmm.statistics()
        assert statistics.true_faults > 50_000
        assert (statistics.frames_shadow == 0) == (paging is PagingMode.NESTED)
    assert machine.free_frames == machine.frames


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("parameters", ["pti=on", "nokaslr mitigations=off"])
def test_isolation_and_address_randomization(
    linux_guest: LinuxGuest, paging: PagingMode, parameters: str
) -> None:
    machine = Machine("384M", scatter_seed=2)
    append = f"{parameters} workload=signals,mappings,processes rounds=300 children=2 pages=64"
    with boot(linux_guest, paging, append, machine) as vm:
        run(vm)
        text = console(vm)
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, text[-3000:]
        assert ("page tables isolation: enabled" in text) == ("pti=on" in parameters)


@pytest.mark.parametrize("paging", MODES)
def test_memory_managed_under_its_feet(linux_guest: LinuxGuest, paging: PagingMode) -> None:
    """Pages move, vanish and are shared every 40 ms, from the first instruction to the last."""
    machine = Machine("384M", scatter_seed=3)
    append = "quiet workload=signals,mappings,processes,cache rounds=6 files=24 percent=40"
    options = RemapOptions(every_ms=40, move=0.02, unmap=0.05, share=True, seed=5)
    with boot(linux_guest, paging, append, machine) as vm:
        remapper = Remapper(vm, options, 0)
        while vm.run_quantum(40_000_000) is None:
            if remapper() and remapper.rounds % 8 == 0:
                assert check_machine(machine, [vm.vmm]) == []
            assert vm.host_seconds < 200, console(vm)[-1000:]
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, console(vm)[-3000:]
        statistics = vm.vmm.statistics()
        assert statistics.moved > 1000
        assert statistics.brought_back > 1000
        assert statistics.share_breaks > 0


@pytest.mark.parametrize("paging", MODES)
def test_stock_balloon_driver(linux_guest: LinuxGuest, paging: PagingMode) -> None:
    """vmw_balloon follows the targets up and down, and the guest stays healthy."""
    target = 24_000
    machine = Machine("384M", scatter_seed=4)
    append = "quiet workload=idle,fill milliseconds=20000 passes=1"
    with boot(linux_guest, paging, append, machine) as vm:
        while b"idle: begins" not in vm.serial_log:
            assert vm.run_quantum() is None, console(vm)[-2000:]
        assert "module vmw_balloon loaded" in console(vm)
        before = machine.free_frames
        vm.balloon.target = target
        while vm.balloon.size < target:
            assert vm.run_quantum() is None, f"balloon of {vm.balloon.size} pages"
        assert check_machine(machine, [vm.vmm]) == []
        inflated = machine.free_frames
        vm.balloon.target = 0
        while vm.balloon.size > 0:
            assert vm.run_quantum() is None, f"balloon of {vm.balloon.size} pages"
        run(vm)
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, console(vm)[-3000:]
        assert inflated >= before - 2000  # what it had never touched cost nothing to give up
        assert vm.vmm.state.balloon_touched == 0


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize(
    ("how", "reason"),
    [("poweroff=1", EndReason.POWER_OFF), ("poweroff=2", EndReason.RESET)],
)
def test_power_off_and_reboot(
    linux_guest: LinuxGuest, paging: PagingMode, how: str, reason: EndReason
) -> None:
    machine = Machine("320M", scatter_seed=5)
    with boot(linux_guest, paging, f"quiet workload=signals {how}", machine) as vm:
        assert vm.run(timeout=120).reason is reason
    assert machine.free_frames == machine.frames


def test_panic_is_an_outcome_of_its_own(linux_guest: LinuxGuest) -> None:
    machine = Machine("320M", scatter_seed=6)
    with boot(linux_guest, PagingMode.NESTED, "quiet workload=panic", machine) as vm:
        outcome = vm.run(timeout=120)
    assert outcome.reason is EndReason.PANIC
    assert outcome.exit_status == 1
    assert "Attempted to kill init" in outcome.detail


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_same_verdicts_as_on_qemu(linux_guest: LinuxGuest) -> None:
    """The same kernel, initramfs, memory and workloads on QEMU's microvm with TCG."""
    workload = "console=ttyS0 quiet workload=compute,signals,mappings,processes,cache,compile"
    command = [
        "qemu-system-x86_64", "-M", "microvm,acpi=on,rtc=on", "-accel", "tcg", "-cpu", "max",
        "-m", "256M", "-nographic", "-no-reboot", "-kernel", str(linux_guest.kernel),
        "-initrd", str(linux_guest.initrd), "-append", workload,
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip
    for last in (False, False, True):  # QEMU 7.2 itself has been seen to hang early in its boot
        try:
            peer = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=100, check=False
            )
            break
        except subprocess.TimeoutExpired:
            if last:
                pytest.skip("QEMU hung in its boot three times: there is no peer to compare with")
    assert peer.returncode == 0x10 << 1 | 1, peer.stdout[-2000:]
    theirs = verdicts(peer.stdout.decode("ascii", "replace"))
    assert len(theirs) > 8
    machine = Machine("384M", scatter_seed=7)
    with VirtualMachine(machine, memory="256M", paging=PagingMode.SHADOW) as vm:
        vm.load(linux_guest.kernel, initrd=linux_guest.initrd, append=workload)
        vm.run(timeout=240)
        assert verdicts(console(vm)) == theirs


@pytest.mark.acceptance
@pytest.mark.parametrize("paging", MODES)
def test_twenty_boots_in_a_row(linux_guest: LinuxGuest, paging: PagingMode) -> None:
    for seed in range(20):
        machine = Machine("320M", scatter_seed=seed)
        with boot(linux_guest, paging, f"workload=signals,compute rounds={seed}", machine) as vm:
            outcome = vm.run(timeout=120)
            assert outcome.reason is EndReason.SUCCESS, (seed, console(vm)[-2000:])
