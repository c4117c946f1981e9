# SPDX-License-Identifier: Apache-2.0
"""A VM whose quanta cost the host too much sits out rounds: it falls behind alone.

A round ends when its slowest VM has run its quantum, so a guest whose quanta cost a thousand times
as much as others' (code that changes itself) would take nearly all of everybody's time. Each VM
therefore has an account of processor time, as a token bucket: a quantum adds what it may cost at
most, what it did cost is taken off. Who has used up the account is interrupted
(``vm.host_time``), and *throttled*: it sits out while the rounds of the others take a multiple of
the time that the round with its slice took, a multiple that doubles each time up to
``MOST_MULTIPLE``. So in the long run the others wait for it in one part of ``MOST_MULTIPLE + 1`` of
the time, however many cores there are. What they see is what they would see without it: their
quanta and virtual times are the same.

What a quantum may cost is far from what ordinary guests cost (the scenarios of the test suite: 14
times their virtual time at most), so ordinary guests are never throttled, and their runs do not
depend on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memvirt.host.hosted_vm import HostedVm
from memvirt.vm.host_time import SHARE_FACTOR, SHARE_SECONDS
from memvirt.vm.outcome import Outcome
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmkernel.managed import Condition
from memvirt.vmkernel.vmkernel import VmKernel

BURST_SECONDS = SHARE_SECONDS  # of a processor, saved up: the first quanta of a guest are dear
LEAST_SECONDS = 0.01  # that a quantum may cost, however short it is
COST_FACTOR = SHARE_FACTOR  # times its virtual time, that a quantum may cost beside that
SLICE_SECONDS = 0.2  # that a throttled VM gets when it has its turn
MOST_MULTIPLE = 16
_TOLERANCE_SECONDS = 1e-3  # of two readings of clocks


@dataclass(frozen=True, slots=True)
class HostTime:
    """What running one VM has cost its host."""

    processor_seconds: float  # time of processors in its quanta
    throttled: int  # times it was made to sit out
    rounds_sat_out: int


class _Account:
    """Processor time of one VM. Seconds; ``now`` counts the time that rounds take."""

    def __init__(self, quantum_ns: int) -> None:
        self.allowance = LEAST_SECONDS + COST_FACTOR * quantum_ns / 1e9
        self.credit = BURST_SECONDS
        self.charged = 0.0  # of what the VM has cost since it was powered on
        self.until = 0.0
        self.multiple = 1
        self.throttled = self.rounds_sat_out = 0

    def begin_quantum(self) -> None:
        self.credit = min(self.credit, BURST_SECONDS) + self.allowance

    def share(self, cost: float) -> float:
        """What the VM may use now; ``cost``: what it has used since it was powered on."""
        return max(self.credit - (cost - self.charged), SLICE_SECONDS)

    def settle(self, cost: float, *, unfinished: bool, now: float, took: float) -> float:
        """After a round that took ``took`` seconds: how long the VM has to sit out from ``now``."""
        spent, self.charged = cost - self.charged, cost
        used_up = spent >= self.credit - _TOLERANCE_SECONDS
        self.credit -= spent
        if not (unfinished and used_up):  # else somebody is in a hurry
            if self.credit >= BURST_SECONDS:  # it costs less than it may, and has for long
                self.multiple = 1
            return 0.0
        self.credit = 0.0
        self.multiple = min(2 * self.multiple, MOST_MULTIPLE)
        self.throttled += 1
        self.until = now + self.multiple * took
        return self.until - now


class Throttle:
    """Runs the quanta of a host's VMs, and decides who sits out. ``clock`` counts seconds."""

    def __init__(
        self, kernel: VmKernel, quantum_ns: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock = clock
        self._kernel = kernel
        self._quantum_ns = quantum_ns
        self._accounts: dict[int, _Account] = {}
        self._now = 0.0  # seconds that rounds have taken
        self._began = 0.0

    def _account(self, vm: VirtualMachine) -> _Account:
        return self._accounts.setdefault(vm.vm_id, _Account(self._quantum_ns))

    def host_time(self, vm: VirtualMachine) -> HostTime:
        """What a VM has cost so far."""
        account = self._account(vm)
        return HostTime(vm.processor_seconds, account.throttled, account.rounds_sat_out)

    # In the VM's thread ------------------------------------------------------------------------

    def run(self, vm: VirtualMachine) -> Outcome | None:
        """Run its quantum, or what is left of one that was interrupted."""
        if vm.unfinished:
            return self.go_on(vm)
        account = self._account(vm)
        account.begin_quantum()
        return vm.run_quantum(self._quantum_ns, share=account.share(vm.processor_seconds))

    def go_on(self, vm: VirtualMachine) -> Outcome | None:
        """Go on with a quantum, in the same round or a later one."""
        return vm.resume_quantum(share=self._account(vm).share(vm.processor_seconds))

    # At quiescent points -----------------------------------------------------------------------

    def begin_round(self, vms: Sequence[HostedVm]) -> None:
        """Let those run whose time has come; all of them, if nobody else waits for them."""
        self._began = self.clock()
        busy = any(entry.to_come or _can_run(entry) for entry in vms)
        for entry in vms:
            if entry.vm is None or entry.managed is None or not entry.managed.throttled:
                continue
            account = self._account(entry.vm)
            if busy and self._now < account.until:
                account.rounds_sat_out += 1
            else:
                self._kernel.end_throttle(entry.managed)

    def end_round(self, vms: Iterable[HostedVm]) -> None:
        """Charge those who ran, and throttle who has used more than there was for it."""
        took = self.clock() - self._began
        self._now += took
        for entry in vms:
            vm, managed = entry.vm, entry.managed
            if vm is None or managed is None:
                continue
            account, before = self._account(vm), self._account(vm).charged
            if vm.processor_seconds == before:
                continue  # it did not run
            out = account.settle(
                vm.processor_seconds, unfinished=vm.unfinished, now=self._now, took=took
            )
            if out and vm.outcome is None:
                self._kernel.throttle(
                    managed,
                    f"{account.charged - before:.3g} s of a processor for a quantum of "
                    f"{self._quantum_ns / 1e6:g} ms and more to come: it sits out {out:.3g} s",
                )


def _can_run(entry: HostedVm) -> bool:
    if entry.vm is None or entry.managed is None or entry.vm.paused:
        return False
    return entry.managed.condition is Condition.RUNNING
