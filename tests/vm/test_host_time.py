# SPDX-License-Identifier: Apache-2.0
"""A quantum that costs the host too much is interrupted and goes on later; nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.vm import virtual_machine
from memvirt.vm.host_time import HostCost, HostTimeWatch
from tests.small_guest import flat_guest

# Each turn changes its own code: a thousand times what other instructions cost.
_CHANGES_ITSELF = flat_guest("1: incb 2f + 1(%rip)\n2: mov $0, %al\n jmp 1b")
_COUNTS = flat_guest(
    """ mov $3000000, %ecx
    1:  incl 0x300000
        dec %ecx
        jnz 1b
        mov $0x10, %al
        out %al, $0xF4
        hlt"""
)


@pytest.fixture
def small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every quantum that lasts until the thread looks has cost its share."""
    monkeypatch.setattr(virtual_machine, "share_seconds", lambda _: 0.0)


@pytest.mark.usefixtures("small_share")
def test_a_quantum_without_end_is_interrupted() -> None:
    with VirtualMachine(Machine("64M"), memory="4M") as vm:
        vm.load(_CHANGES_ITSELF, protocol="flat")
        assert vm.run_quantum(10**15) is None
        assert vm.unfinished
        before = vm.virtual_ns
        assert vm.resume_quantum() is None
        assert vm.unfinished
        assert vm.virtual_ns > before  # it comes on
        vm.interrupt_quantum()
        vm.request_stop()  # that counts, although the other came first
        vm.resume_quantum()
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.STOPPED


def test_an_interrupted_quantum_goes_on_where_it_was() -> None:
    """Whenever it is interrupted, the guest sees nothing and its virtual time is the same."""

    def run(*, interrupt: bool) -> tuple[int, bytes, int]:
        with VirtualMachine(Machine("64M"), memory="4M") as vm:
            vm.load(_COUNTS, protocol="flat")
            interrupted = 0
            while vm.outcome is None:
                if interrupt and interrupted < 50 and not vm.unfinished:
                    vm.interrupt_quantum()  # before it has begun
                if vm.unfinished:
                    interrupted += 1
                    vm.resume_quantum()
                else:
                    vm.run_quantum(100_000)
            assert vm.outcome.reason is EndReason.SUCCESS
            return vm.virtual_ns, vm.vmm.read_physical(0x300000, 4), interrupted

    straight, broken = run(interrupt=False), run(interrupt=True)
    assert broken[:2] == straight[:2]
    assert straight[2] == 0
    assert broken[2] > 10


@pytest.mark.usefixtures("small_share")
def test_a_timeout_does_not_wait_for_the_end_of_a_quantum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "QUANTUM_NS", 10**15)
    monkeypatch.setattr(VirtualMachine.run_quantum, "__defaults__", (10**15,))
    seen = 0

    def look(vm: VirtualMachine) -> None:
        nonlocal seen
        seen += 1

    with VirtualMachine(Machine("64M"), memory="4M") as vm:
        vm.load(_CHANGES_ITSELF, protocol="flat")
        outcome = vm.run(timeout=0.5, on_quantum=look)
        assert outcome.reason is EndReason.TIMEOUT
        assert outcome.host_seconds == vm.host_seconds  # the last quantum is in it, and once
    assert seen


@pytest.mark.usefixtures("small_share")
def test_a_signal_is_handled_within_a_quantum() -> None:
    """Ctrl-C: Python's handlers run in the main thread, which is in the guest's code."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGUSR1, note)
    try:
        with VirtualMachine(Machine("64M"), memory="4M") as vm:
            vm.load(_CHANGES_ITSELF, protocol="flat")
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            vm.run_quantum(10**15)
            while not asked:
                vm.resume_quantum()
                assert vm.unfinished
    finally:
        signal.signal(signal.SIGUSR1, before)


class _Asked:
    def __init__(self) -> None:
        self.event = threading.Event()

    def interrupt_quantum(self) -> None:
        self.event.set()


def _work(event: threading.Event) -> Iterator[int]:
    while not event.is_set():
        yield sum(range(1000))


def test_only_processor_time_counts() -> None:
    watch = HostTimeWatch()
    idle, busy = _Asked(), _Asked()
    idle_cost, busy_cost = HostCost(), HostCost()
    with watch.quantum(idle, 1e6, idle_cost):  # a share that this test never uses
        with watch.quantum(busy, 0.05, busy_cost):
            for _ in _work(busy.event):
                pass
        assert not idle.event.is_set()
    busy.event.clear()
    assert busy_cost.processor_seconds >= 0.05
    assert idle_cost.wall_seconds >= busy_cost.wall_seconds > 0
    with watch.quantum(idle, 0.0, idle_cost):
        idle.event.wait()
    assert not busy.event.is_set()  # it was not asked after its block
