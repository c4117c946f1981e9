# SPDX-License-Identifier: Apache-2.0
"""The bundled guest's balloon driver, while the guest verifies its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.images import image_path
from memvirt.mmu.page_state import FLAG_BALLOONED
from memvirt.platform.balloon import Capability, Command, Status
from memvirt.vmm.check import check_machine

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
GUEST_PAGES = (32 << 20) // 4096
POLL_NS = 100_000_000  # two polls of the driver


@contextmanager
def guest(append: str, paging: PagingMode) -> Iterator[VirtualMachine]:
    """A 32 MiB guest; on leaving, it has verified its memory and no frame is lost."""
    machine = Machine("48M", scatter_seed=1)
    with VirtualMachine(machine, memory="32M", paging=paging) as vm:
        vm.load(image_path("bundled"), append=append)
        yield vm
        outcome = vm.run(timeout=120)
        assert outcome.reason is EndReason.SUCCESS, bytes(vm.serial_log[-300:])
        if paging is not PagingMode.FLAT:
            assert check_machine(machine, [vm.vmm]) == []
        assert vm.balloon.touched == 0
    assert machine.free_frames == machine.frames


def run_until(vm: VirtualMachine, condition: Callable[[], bool]) -> None:
    while not condition():
        assert vm.run_quantum() is None, vm.outcome
        assert vm.host_seconds < 60


def run_for(vm: VirtualMachine, nanoseconds: int) -> None:
    assert vm.run_quantum(nanoseconds) is None, vm.outcome


@pytest.mark.parametrize("paging", MODES)
def test_the_balloon_follows_its_target(paging: PagingMode) -> None:
    with guest("workload=idle percent=25 ticks=100", paging) as vm:
        balloon = vm.balloon
        run_until(vm, lambda: balloon.connected)
        assert balloon.guest_id == 0
        for target in (3000, 500, 1700, 0, 100):
            balloon.target = target
            run_for(vm, POLL_NS)
            assert balloon.size == target == balloon.locked
            assert int((vm.vmm.pmap.flags & FLAG_BALLOONED != 0).sum()) == target
            assert check_machine(vm.machine, [vm.vmm]) == []


@pytest.mark.parametrize("paging", MODES)
def test_frames_of_pages_the_guest_has_used_are_freed(paging: PagingMode) -> None:
    """`idle` runs in memory that `fill` has dirtied; what it does not need comes back."""
    with guest("workload=all ticks=60", paging) as vm:
        run_until(vm, lambda: b"idle: 2" in vm.serial_log)
        run_for(vm, POLL_NS)
        dirty, free = int(vm.vmm.statistics().private), vm.machine.free_frames
        assert dirty > GUEST_PAGES * 7 // 10
        vm.balloon.target = GUEST_PAGES // 3
        run_for(vm, POLL_NS)
        assert vm.balloon.size == vm.balloon.target
        assert vm.vmm.statistics().private < dirty - vm.balloon.size * 9 // 10
        assert vm.machine.free_frames > free + vm.balloon.size * 9 // 10


def _serial(append: str, paging: PagingMode, target: int) -> tuple[bytes, VirtualMachine]:
    with guest(append, paging) as vm:
        vm.balloon.target = target
    return bytes(vm.serial_log), vm


@pytest.mark.parametrize("paging", MODES)
def test_a_greedy_host_changes_nothing_the_guest_can_see(paging: PagingMode) -> None:
    """All of memory is wanted, all the time. The guest calls pages back when it needs them."""
    expected, _ = _serial("workload=all balloon=0", paging, 0)
    found, vm = _serial("workload=all", paging, GUEST_PAGES)
    assert found == expected
    assert vm.balloon.locks > GUEST_PAGES // 4
    assert vm.balloon.unlocks > 100
    assert vm.balloon.commands[Command.BATCHED_LOCK] > 10


@pytest.mark.parametrize("paging", MODES)
def test_a_target_that_jumps_about(paging: PagingMode) -> None:
    with guest("workload=all", paging) as vm:
        sizes = set()
        for quantum in range(10_000):
            vm.balloon.target = (quantum * 977) % (GUEST_PAGES // 2)
            if vm.run_quantum(20_000_000) is not None:
                break
            sizes.add(vm.balloon.size)
            if quantum % 10 == 0:
                assert check_machine(vm.machine, [vm.vmm]) == []
        assert len(sizes) > 3


@pytest.mark.parametrize("paging", MODES)
def test_resets_in_the_middle(paging: PagingMode) -> None:
    with guest("workload=all ticks=100", paging) as vm:
        balloon = vm.balloon
        balloon.target = 2000
        rounds = 0
        while vm.run_quantum(60_000_000) is None:
            if balloon.size > 100:
                balloon.reset()
                rounds += 1
                assert (balloon.connected, balloon.size) == (False, 0)
        assert rounds > 3
        assert balloon.resets == rounds
        assert balloon.starts in (rounds, rounds + 1)


@pytest.mark.parametrize("paging", MODES)
def test_a_guest_without_a_driver(paging: PagingMode) -> None:
    with guest("workload=fill balloon=0", paging) as vm:
        vm.balloon.target = 1000
    assert not vm.balloon.connected
    assert (vm.balloon.size, vm.balloon.starts) == (0, 0)


@pytest.mark.parametrize("paging", MODES)
def test_a_driver_that_refuses(paging: PagingMode) -> None:
    with guest("workload=idle balloon=refuse ticks=30", paging) as vm:
        vm.balloon.target = 1000
        run_for(vm, 3 * POLL_NS)
        assert vm.balloon.connected
        assert vm.balloon.size == 0
    assert vm.balloon.commands[Command.GET_TARGET] > 2
    assert vm.balloon.commands[Command.BATCHED_LOCK] == 0


def test_a_host_without_batches() -> None:
    with guest("workload=idle ticks=50", PagingMode.NESTED) as vm:
        vm.balloon.offered = Capability.BASIC
        for target in (700, 100):
            vm.balloon.target = target
            run_for(vm, 2 * POLL_NS)
            assert vm.balloon.size == target
    assert vm.balloon.commands[Command.LOCK] == 700
    assert vm.balloon.commands[Command.BATCHED_LOCK] == 0


def test_flat_memory_refuses_every_page() -> None:
    """Nothing can be taken from a guest without virtualization; it lives on undisturbed."""
    with guest("workload=idle ticks=30", PagingMode.FLAT) as vm:
        vm.balloon.target = 1000
    assert vm.balloon.connected
    assert vm.balloon.size == 0
    assert vm.balloon.answers[Status.PPN_PINNED] > 0


@pytest.mark.parametrize("paging", MODES)
def test_ballooning_makes_room_for_another_guest(paging: PagingMode) -> None:
    """Without the balloon the second guest could not even be loaded and run."""
    machine = Machine("40M", scatter_seed=3)
    with (
        VirtualMachine(machine, memory="32M", paging=paging) as first,
        VirtualMachine(machine, memory="24M", paging=paging) as second,
    ):
        first.load(image_path("bundled"), append="workload=all ticks=400")
        run_until(first, lambda: b"idle: 2" in first.serial_log)
        assert machine.free_frames < (24 << 20) // 4096 * 8 // 10
        first.balloon.target = 3500
        run_for(first, POLL_NS)
        second.load(image_path("bundled"), append="workload=fill")
        assert second.run(timeout=60).reason is EndReason.SUCCESS
        assert first.run(timeout=60).reason is EndReason.SUCCESS
        assert check_machine(machine, [first.vmm, second.vmm]) == []
