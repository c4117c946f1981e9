# SPDX-License-Identifier: Apache-2.0
"""A VM whose quanta use up the host's time sits out rounds; the others see nothing of it.

Host time is counted, never measured: the clock is a number, and what a quantum costs is made up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memvirt.host import throttle
from memvirt.host.host import Host, HostInterrupted
from memvirt.host.throttle import BURST_SECONDS, COST_FACTOR, MOST_MULTIPLE, SLICE_SECONDS, Throttle
from memvirt.scenario.scenario import parse_scenario
from memvirt.vm.outcome import EndReason
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.managed import Condition, ManagedVm
from tests.small_guest import small_guest
from tests.vmkernel.bare import BareHost, BareVm

_QUANTUM_NS = 10_000_000
_ALLOWANCE = throttle.LEAST_SECONDS + COST_FACTOR * _QUANTUM_NS / 1e9
_ROUND_SECONDS = 0.01  # what a round takes beside the slices of the costly VM


@dataclass
class _Vm:
    """A quantum costs ``needs`` seconds; it is interrupted where its share ends."""

    vm_id: int
    needs: float
    processor_seconds: float = 0.0
    left: float = 0.0
    unfinished: bool = False
    paused: str = ""
    outcome: None = None
    ran: int = 0
    shares: list[float] = field(default_factory=list)

    def run_quantum(self, _: int, *, share: float) -> None:
        self.left = self.needs
        self.resume_quantum(share=share)

    def resume_quantum(self, *, share: float) -> None:
        used = min(self.left, share)
        self.ran += 1
        self.shares.append(share)
        self.processor_seconds += used
        self.left -= used
        self.unfinished = self.left > 1e-9


class _Rounds:
    """A host's rounds, with VMs whose quanta cost what they say."""

    def __init__(self, *needs: float) -> None:
        self.now = 0.0
        self.bare = BareHost(10_000)
        self.kernel = self.bare.kernel
        self.entries: list[Any] = []
        for number, seconds in enumerate(needs):
            guest = BareVm(self.bare.machine, number, 64, levers=False, balloon=None)
            managed = self.kernel.power_on(guest, VmSettings(f"vm{number}", 64, 1_000), 0)
            self.entries.append(
                SimpleNamespace(vm=_Vm(number, seconds), managed=managed, to_come=False)
            )
        self.throttle = Throttle(self.kernel, _QUANTUM_NS, lambda: self.now)

    def vm(self, number: int) -> _Vm:
        vm = self.entries[number].vm
        assert isinstance(vm, _Vm)
        return vm

    def managed(self, number: int) -> ManagedVm:
        managed = self.entries[number].managed
        assert isinstance(managed, ManagedVm)
        return managed

    def step(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.throttle.begin_round(self.entries)
            able = [
                entry.vm
                for entry in self.entries
                if entry.managed and entry.managed.condition is Condition.RUNNING
            ]
            before = [vm.processor_seconds for vm in able]
            for vm in able:
                self.throttle.run(vm)
            costs = [vm.processor_seconds - cost for vm, cost in zip(able, before, strict=True)]
            self.now += _ROUND_SECONDS + max(costs, default=0.0)
            self.throttle.end_round(self.entries)
            self.kernel.balance(_QUANTUM_NS)

    def events(self) -> list[str]:
        return [
            f"{event.vm} {event.mechanism}"
            for event in self.kernel.events
            if event.mechanism in (Mechanism.THROTTLE, Mechanism.RESUME)
        ]


def test_ordinary_guests_are_never_throttled() -> None:
    rounds = _Rounds(0.0, _ALLOWANCE, 0.02)
    rounds.step(200)
    assert [rounds.vm(number).ran for number in range(3)] == [200] * 3
    assert rounds.events() == []
    assert min(rounds.vm(1).shares) >= BURST_SECONDS  # what it may cost at a stretch is left


def test_a_burst_is_borne_once() -> None:
    """The first quanta of a guest are dear; one that stays so is throttled."""
    rounds = _Rounds(0.0, _ALLOWANCE + BURST_SECONDS / 4)
    rounds.step(4)
    assert rounds.events() == []
    rounds.step(2)
    assert rounds.events() == ["vm1 throttle"]


def test_a_costly_vm_gets_a_bounded_part_of_the_time() -> None:
    """Its quanta would take 14 s each. The others run in every round, it in fewer and fewer."""
    rounds = _Rounds(0.001, 14.0)
    rounds.step(3_000)
    good, costly = rounds.vm(0), rounds.vm(1)
    assert good.ran == 3_000
    later = costly.processor_seconds - costly.shares[0]  # beside what every guest has at first
    assert later / rounds.now < 1 / MOST_MULTIPLE
    cost = rounds.throttle.host_time(costly)  # type: ignore[arg-type]
    assert cost.processor_seconds == costly.processor_seconds
    assert cost.rounds_sat_out == 3_000 - costly.ran
    assert cost.throttled == costly.ran
    first = BURST_SECONDS + _ALLOWANCE
    assert costly.shares == pytest.approx([first] + [SLICE_SECONDS] * (costly.ran - 1))
    assert rounds.managed(1).condition is Condition.THROTTLED
    assert "14" not in rounds.managed(1).reason
    assert "0.2 s of a processor" in rounds.managed(1).reason
    turns = ["vm1 throttle", "vm1 resume"] * costly.ran
    assert rounds.events() == turns[: 2 * costly.ran - 1]


def test_one_just_below_the_bound_of_one_quantum_is_throttled_too() -> None:
    rounds = _Rounds(0.001, BURST_SECONDS * 0.9)
    rounds.step(2_000)
    assert rounds.vm(0).ran == 2_000
    assert rounds.vm(1).processor_seconds / rounds.now < 0.2


def test_one_that_mends_its_ways_is_forgiven() -> None:
    rounds = _Rounds(0.001, 14.0)
    rounds.step(500)
    costly = rounds.vm(1)
    costly.left = costly.needs = 0.001
    rounds.step(2_000)
    ran = costly.ran
    rounds.step(100)
    assert costly.ran == ran + 100  # in every round again
    costly.needs = 14.0
    rounds.step(1)
    assert costly.shares[-1] == pytest.approx(BURST_SECONDS + _ALLOWANCE)
    out, before = rounds.throttle.host_time(costly).rounds_sat_out, rounds.now  # type: ignore[arg-type]
    while costly.ran == ran + 101:
        rounds.step()
    assert rounds.throttle.host_time(costly).rounds_sat_out > out  # type: ignore[arg-type]
    waited = rounds.now - before
    assert waited < 2.2 * (BURST_SECONDS + _ALLOWANCE) + SLICE_SECONDS  # as the first time: twice


def test_alone_it_never_sits_out() -> None:
    """Nobody waits for it: neither without others, nor beside those who cannot run."""
    rounds = _Rounds(14.0, 14.0)
    rounds.vm(1).paused = "a disk fails"
    rounds.managed(1).condition = Condition.PAUSED
    rounds.step(50)
    assert rounds.vm(0).ran == 50


def test_two_of_a_kind_take_turns() -> None:
    rounds = _Rounds(14.0, 14.0)
    rounds.step(50)
    assert min(rounds.vm(0).ran, rounds.vm(1).ran) > 10


def test_it_does_not_delay_those_to_come() -> None:
    """Until a VM is due, virtual time passes without the costly one."""
    rounds = _Rounds(14.0)
    rounds.entries.append(SimpleNamespace(vm=None, managed=None, to_come=True))
    rounds.step(1_000)
    assert rounds.vm(0).processor_seconds < 3


def test_held_and_throttled_are_kept_apart() -> None:
    rounds = _Rounds(0.001, 14.0)
    rounds.step()
    costly = rounds.managed(1)
    assert costly.condition is Condition.THROTTLED
    rounds.kernel.controls.hold(costly, "wait")
    assert costly.condition is Condition.PAUSED
    rounds.kernel.controls.release(costly)
    assert costly.condition is Condition.THROTTLED
    rounds.kernel.controls.hold(costly, "wait")
    rounds.step(1_000)
    assert not costly.throttled
    assert costly.condition is Condition.PAUSED
    assert rounds.vm(1).ran == 1
    rounds.kernel.controls.release(costly)
    rounds.step()
    assert rounds.vm(1).ran == 2


# A real guest beside a real guest --------------------------------------------------------------


def _host(image: Path | None) -> Host:
    hostile = f'[[vm]]\nname = "hostile"\nmemory = "4M"\nimage = "{image}"\n' if image else ""
    return Host(
        parse_scenario(
            f"""timeout = 600
            [machine]
            memory = "64M"
            quantum_ms = 1000
            [machine.Mem]
            ShareScanTime = 0
            [[vm]]
            name = "good"
            memory = "8M"
            append = "workload=idle percent=10 ticks=3000 balloon=0"
            {hostile}
            """,
            "test",
        )
    )


@pytest.fixture
def hostile_image(tmp_path: Path) -> Path:
    """Each turn changes its own code."""
    image = tmp_path / "hostile"
    image.write_bytes(small_guest("test: incb 1f + 1(%rip)\n1: mov $0, %al\n jmp test"))
    return image


def test_the_others_of_a_round_do_not_wait(
    hostile_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quantum would take the host long. The good guest's run is the same with and without."""
    with _host(None) as host:
        (good,) = host.vms
        assert host.run()
        alone = good.virtual_ns, bytes(good.serial_log), host.rounds
    monkeypatch.setattr(throttle, "SLICE_SECONDS", 0.0)
    with _host(hostile_image) as host:
        good, hostile = host.vms
        account = host._throttle._account(hostile)
        account.credit = account.allowance = 0.0  # it costs too much as soon as somebody looks
        now = 0

        def a_second_each_time() -> float:
            nonlocal now
            now += 1
            return float(now)

        host._throttle.clock = a_second_each_time  # a round takes one, whatever it took
        turns, sat_out = [], 0
        while good.outcome is None:
            host.step()
            if host.host_time(hostile).rounds_sat_out == sat_out:
                turns.append(host.rounds)
            sat_out = host.host_time(hostile).rounds_sat_out
        assert (good.virtual_ns, bytes(good.serial_log), host.rounds) == alone
        assert good.outcome.reason is EndReason.SUCCESS
        # It sat out 2, 4, 8, then 16 rounds, and fell behind alone.
        assert turns == [turn for turn in (1, 4, 9, 18, 35) if turn <= host.rounds]
        assert len(turns) >= 4
        assert hostile.virtual_ns < good.virtual_ns
        cost = host.host_time(hostile)
        assert (cost.throttled, cost.rounds_sat_out) == (len(turns), host.rounds - len(turns))
        assert host.host_time(good).throttled == 0
        assert host.events.counts[Mechanism.THROTTLE] == len(turns)
        assert host.errors == host.violations == []


def test_a_run_ends_in_the_middle_of_a_long_quantum(hostile_image: Path) -> None:
    """Ctrl-C is heard while quanta run: they are interrupted, and the run is over."""
    asked = 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1  # not before the first round

    with _host(hostile_image) as host:
        with pytest.raises(HostInterrupted):
            host.run(interrupted=interrupted)
        assert host.rounds == 1
        assert host.vms[1].unfinished
        assert (
            host.host_time(host.vms[1]).throttled == 0
        )  # that it was interrupted is not its fault
