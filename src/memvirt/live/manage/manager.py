# SPDX-License-Identifier: Apache-2.0
"""ESXi's policy on the live VMs of this host.

``step`` is a quiescent point: VMs and host are measured, the VMkernel decides, its decisions are
carried out. What is changed is on record before (``ledger``); ``close`` puts it back. The VMs run
on all the time: only their memory is managed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from memvirt.live.discovery import DiscoveredVm, discover
from memvirt.live.errors import LiveError, MonitorError, ProcessGone
from memvirt.live.host_memory import HostPages, read_host_pages
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.live.working_set import FrameWatcher
from memvirt.live.working_set_way import WorkingSetWay
from memvirt.vmkernel.admission import AdmissionError
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.samples import Sample
from memvirt.vmkernel.vmkernel import VmKernel

from .blocking import stop_or_continue
from .cgroup import ROOT, MemoryCgroup, find_group
from .eviction import HostSwap
from .group_reclaim import GroupReclaim, give_limits_back
from .guest import GuestOptions, LiveGuest
from .host_plan import HostPlan, VmPlan, admit_all
from .ksm_control import KsmControl
from .ledger import Ledger, VmRecord
from .live_machine import LiveMachine
from .mechanisms import options_of, registered
from .protection import ReservationProtection
from .restore import restore_all, restore_vm
from .sampling import open_sampler

_DISCOVER_SECONDS = 5.0
MANAGE = "manage"  # the name of events that no mechanism of the VMkernel is behind


class ManageError(LiveError):
    """What was asked for cannot be done; the message says what would be right."""


@dataclass(eq=False)
class _Entry:
    """One VM of the plan: what is known of it, and what was said of it last."""

    plan: VmPlan
    guest: LiveGuest | None = None
    managed: ManagedVm | None = None
    group: MemoryCgroup | None = None
    said: str = ""
    retry_at: float = 0.0


class Manager:
    """Manages the VMs of ``plan``. Use as a context manager, or ``close`` it.

    With ``dry_run`` everything is decided and nothing done: the VMkernel goes on as if each guest
    had obeyed at once. ``ledger`` is None then only. ``watcher`` samples instead of what the host
    has, and is closed at the end. ``clock``, ``found``, ``opened``, ``host_pages`` and ``cgroups``
    are where time, VMs, the host's memory and control groups come from. Raises ManageError,
    LiveError.
    """

    def __init__(
        self,
        plan: HostPlan,
        ledger: Ledger | None,
        *,
        dry_run: bool = False,
        clock: Callable[[], float] = time.monotonic,
        found: Callable[[], list[DiscoveredVm]] = discover,
        opened: Callable[[DiscoveredVm], LiveVm] = LiveVm,
        host_pages: Callable[[], HostPages] = read_host_pages,
        watcher: FrameWatcher | None = None,
        cgroups: Path = ROOT,
    ) -> None:
        if (ledger is None) != dry_run:
            raise ValueError("a ledger is needed unless nothing is done")
        given_back = give_limits_back(ledger) if ledger is not None else []  # before all else
        self.plan = plan
        self.dry_run = dry_run
        self._ledger = ledger
        self._clock, self._discover, self._opened = clock, found, opened
        self._pages, problem = open_kernel_pages()
        if self._pages is None:
            raise ManageError(problem)
        self._cgroups = cgroups
        group = MemoryCgroup(plan.cgroup, cgroups) if plan.cgroup else None
        self.machine = LiveMachine(plan.memory, cgroup=group, host_pages=host_pages)
        with registered():
            self.kernel = VmKernel(self.machine, options_of(plan), seed=plan.seed)
        try:
            admit_all(replace(plan, memory=self.machine.frames), self.kernel.min_free)
        except ValueError as error:
            self._pages.close()
            raise ManageError(str(error)) from error
        self.swap = HostSwap(host_pages)
        self._entries = [_Entry(vm) for vm in plan.vms]
        self._discovered_at = float("-inf")
        self._stepped_at: float | None = None
        self._closed = False
        if plan.working_set is WorkingSetWay.CLEAR_REFS:
            raise ManageError("working_set clear-refs tells nothing of single pages: watch has it")
        # The answer has to be there when the VMkernel asks for it.
        seconds = max(plan.options.sample_period - 2 * plan.interval, 1.0)
        self._sampler = open_sampler(
            plan.working_set, self._pages, seconds, lambda text: self._note("", text), watcher
        )
        if self.swap.total == 0 and plan.evicts:
            self._note("", "this host has no swap space: only balloons reclaim; zram gives it some")
        for line in given_back:
            self._note("", line)
        self._protection = ReservationProtection(ledger, self._note)
        self.ksm = KsmControl(self.kernel, ledger, self._note, dry_run=dry_run, wanted=plan.ksm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _note(self, name: str, text: str) -> None:
        """An event of our own, with its reason."""
        self.kernel.events.record(self.kernel.time_ns, name, MANAGE, 0, text)

    def _say(self, entry: _Entry, text: str) -> None:
        """As ``_note``, but not the same thing twice in a row."""
        if text != entry.said:
            entry.said = text
            if text:
                self._note(entry.plan.name, text)

    # VMs that come and go -----------------------------------------------------------------------

    def _look_for_vms(self, now: float) -> None:
        if now - self._discovered_at < _DISCOVER_SECONDS:
            return
        self._discovered_at = now
        vms = self._discover()
        claimed: dict[int, str] = {
            entry.guest.vm_id: entry.plan.name
            for entry in self._entries if entry.guest is not None
        }  # fmt: skip
        for entry in self._entries:
            if entry.guest is not None or now < entry.retry_at:
                continue
            fitting = [vm for vm in vms if entry.plan.selector.fits(vm)]
            if not fitting:
                self._say(entry, f"is not running (looked for by {entry.plan.selector})")
            elif len(fitting) > 1:
                pids = ", ".join(str(vm.pid) for vm in fitting)
                self._say(entry, f"left alone: processes {pids} all fit {entry.plan.selector}")
            elif fitting[0].pid in claimed:
                other = claimed[fitting[0].pid]
                self._say(entry, f"left alone: process {fitting[0].pid} is VM {other} already")
            else:
                claimed[fitting[0].pid] = entry.plan.name
                self._adopt(entry, fitting[0], now)
        self.ksm.update([entry.guest for entry in self._entries if entry.guest], vms)

    def _adopt(self, entry: _Entry, found: DiscoveredVm, now: float) -> None:
        """Open a VM and let the VMkernel manage it, or say why not and try again later."""
        entry.retry_at = now + 2 * _DISCOVER_SECONDS
        try:
            vm = self._opened(found)
        except LiveError as error:
            self._say(entry, f"left alone: {error}")
            return
        settings, name = entry.plan.settings, entry.plan.name
        if vm.layout.pages != settings.memory:
            self._say(
                entry,
                f"left alone: it has {vm.layout.pages} pages of memory, the file says "
                f"{settings.memory}",
            )
            vm.close()
            return
        plan = self.plan
        options = GuestOptions(
            plan.balloon, plan.pageout, plan.group_reclaim, plan.scan_share, plan.balloon_patience,
            plan.balloon_retry, self.dry_run,
        )  # fmt: skip
        sampling = self._sampler.add(vm)
        entry.group, group_problem = find_group(entry.plan.cgroup, self._cgroups)
        group = None
        if entry.group is not None:
            group = GroupReclaim(entry.group, vm.process, self._ledger, lambda: self.swap.free)
        guest = LiveGuest(
            vm, self._pages, self.swap, options, sampling,
            group=group,
            note=lambda text: self._note(name, text),
            expect_out=lambda pages: self._expect_out(guest, pages),
        )  # fmt: skip
        try:
            guest.look(now, wanted=True)
            if guest.unmeasured:
                raise LiveError(guest.unmeasured)
            self.kernel.admission.admit(settings, guest.overhead)
        except (LiveError, AdmissionError) as error:
            self._say(entry, f"left alone: {error}")
            self._leave(guest)
            return
        managed = self.kernel.power_on(guest, settings, guest.overhead)
        managed.balloon_target = guest.device.size
        entry.guest, entry.managed = guest, managed
        if group_problem:
            self._note(name, group_problem)
        self._note(name, f"levers: {', '.join(guest.levers) or 'none'}")
        if group is not None and group.impossible:
            self._note(name, f"no lever: {group.impossible}")
        self._take_over(guest)
        self._protect()

    def _protect(self) -> None:
        """Tell the kernel the reservations of the VMs that are managed now."""
        self._protection.update({
            entry.plan.name: (entry.group, entry.plan.settings.reservation)
            for entry in self._entries if entry.guest is not None and entry.group is not None
        })  # fmt: skip

    def _take_over(self, guest: LiveGuest) -> None:
        """Go on with what a manager that died has left on record.

        What it stopped goes on with the next ``_act``.
        """
        record = self._on_record(guest)
        if record is None:
            return
        guest.evictor.out = record.paged_out
        self._note(guest.name, "taken over from a manager that ended without a word")

    def _leave(self, guest: LiveGuest) -> None:
        self._sampler.remove(guest.vm)
        guest.close()

    def _gone(self, entry: _Entry) -> None:
        assert entry.guest is not None
        if entry.managed is not None:
            self.kernel.power_off(entry.managed)
        record = self._on_record(entry.guest)
        if self._ledger is not None and record is not None:
            self._ledger.forget(record)
        self._leave(entry.guest)
        entry.guest = entry.managed = entry.group = None
        self._protect()
        entry.said, entry.retry_at = "", 0.0

    # The quiescent point ------------------------------------------------------------------------

    def step(self) -> None:
        """Measure, decide, act. Raises LiveError only if nothing at all can be done."""
        now = self._clock()
        elapsed = 0.0 if self._stepped_at is None else now - self._stepped_at
        self._stepped_at = now
        self._look_for_vms(now)
        self._measure(now)
        self.kernel.balance(int(elapsed * 1e9))
        self._act(now)
        self._sampler.begin()
        self.ksm.adjust(self.kernel.state.state)

    def _measure(self, now: float) -> None:
        for entry in self._entries:
            guest, managed = entry.guest, entry.managed
            if guest is None or managed is None:
                continue
            try:
                guest.look(now)
            except ProcessGone:
                self._gone(entry)
                continue
            except LiveError as error:
                guest.unmeasured = str(error)
            problems = [guest.unmeasured, guest.monitor_problem]
            if guest.sampling is not None and (error_text := getattr(guest.sampling, "error", "")):
                problems.append(f"working set unknown: {error_text}")
            self._say(entry, "; ".join(problem for problem in problems if problem))
            self._look_at_balloon(guest, managed, now)
            managed.over_limit = (
                not guest.unmeasured and managed.guest.usage().consumed > managed.settings.maximum
            )
        used = sum(entry.guest.charged for entry in self._entries if entry.guest is not None)
        self.machine.update(used)

    def _look_at_balloon(self, guest: LiveGuest, managed: ManagedVm, now: float) -> None:
        device, settings = guest.device, managed.settings
        # A balloon of pages the guest had not touched frees nothing: without this bound it could
        # grow until what is left is less than the reservation.
        most = int(settings.memory * self.kernel.options.ctl_max_percent / 100)
        most = min(most, settings.memory - settings.reservation)
        if device.connected and device.stops_short(now):
            self._note(
                guest.name,
                f"balloon stopped short at {device.size} of {managed.balloon_target} pages: the "
                "guest gives no more",
            )
            managed.balloon_target = device.target
        managed.balloon_max = most if device.ceiling is None else min(most, device.ceiling)

    def _act(self, now: float) -> None:
        """Carry out what was decided and is not done yet."""
        for entry in self._entries:
            guest, managed = entry.guest, entry.managed
            if guest is None or managed is None:
                continue
            if self.dry_run:
                guest.pretend()
                continue
            try:
                self._remember(guest)
                guest.act(now)
                assert self._ledger is not None
                stop_or_continue(guest, managed, self._ledger, allowed=self.plan.block)
            except ProcessGone:
                self._gone(entry)
            except (MonitorError, OSError) as error:
                guest.monitor_problem = str(error)
                self._say(entry, str(error))

    def _remember(self, guest: LiveGuest) -> None:
        """What is about to be changed of a VM goes on record first."""
        assert self._ledger is not None
        wanted = guest.device.wanted
        if wanted is None and guest.evictor.out == 0 and self._on_record(guest) is None:
            return
        record = self._ledger.vm(guest.vm_id, guest.started)
        before = (record.balloon, record.paged_out)
        record.name = guest.name
        if wanted is not None and record.balloon is None:
            record.balloon = (guest.pages - guest.device.held) << 12
            record.memory = guest.pages << 12
        record.paged_out = guest.evictor.out
        if before != (record.balloon, record.paged_out):
            self._ledger.save()

    def _on_record(self, guest: LiveGuest) -> VmRecord | None:
        return None if self._ledger is None else self._ledger.find(guest.vm_id, guest.started)

    def _expect_out(self, guest: LiveGuest, pages: int) -> None:
        """On record before they go, so that a death in between does not lose count of them."""
        if self._ledger is None:
            return
        record = self._ledger.vm(guest.vm_id, guest.started)
        record.name, record.paged_out = guest.name, max(record.paged_out, pages)
        self._ledger.save()

    # ----------------------------------------------------------------------------------------------

    def sample(self) -> Sample:
        """What the VMkernel knows now, in esxtop's columns."""
        return self.kernel.sample()

    @property
    def guests(self) -> dict[str, LiveGuest]:
        """The VMs that are managed now, by name."""
        return {entry.plan.name: entry.guest for entry in self._entries if entry.guest is not None}

    def close(self) -> bool:
        """Put everything back and release everything; True if all is as it was."""
        if self._closed:
            return True
        self._closed = True
        self._sampler.close()
        if self._ledger is not None:
            for guest in self.guests.values():
                if (record := self._on_record(guest)) is not None:
                    record.paged_out = guest.evictor.out
        for guest in self.guests.values():
            guest.close()
        if self._pages is not None:
            self._pages.close()
        if self._ledger is None:
            return True
        return restore_all(self._ledger, lambda line: self._note("", line))

    def restore_others(self) -> None:
        """Put back what is on record of VMs that are not managed any more."""
        if self._ledger is None:
            return
        mine = [self._on_record(guest) for guest in self.guests.values()]
        for record in list(self._ledger.record.vms):
            if record not in mine:
                restore_vm(self._ledger, record, lambda line: self._note("", line))
