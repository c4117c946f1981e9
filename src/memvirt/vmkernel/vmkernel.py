# SPDX-License-Identifier: Apache-2.0
"""The VMkernel: machine memory across all VMs of one host.

``balance`` is called at every quiescent point, with all processors stopped: it settles what the
VMs did meanwhile, runs what is due (sampling, sharing, targets), looks at free memory, reclaims
as the host's state demands, and grants each VM the frames it may use until the next time. All of
it depends on virtual time and the seed only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.machine.memory import FrameKind
from memvirt.vmm.pmap import LARGE_PAGES

from .activity import Activity
from .admission import Admission, VmSettings
from .allocation import targets
from .events import EventLog, Mechanism
from .guest_memory import GuestMemory, MachineFrames
from .host_state import (
    CLEAR_PERCENT,
    HARD_PERCENT,
    SOFT_PERCENT,
    HostStateMachine,
    minimum_free_pages,
)
from .managed import (
    MAXIMUM_GRANT,
    MINIMUM_GRANT,
    NEEDED_TO_RUN,
    Condition,
    ManagedVm,
)
from .options import MemoryOptions, Salting
from .reclaim import Reclaimer
from .report import departed, sample
from .sharing import PageSharing
from .statistics import HostState, Sample, VmMemory

_LARGE_PAGES_BACKOFF_NS = 500_000_000
_LARGE_PAGES_A_ROUND = 4  # large pages made or broken at one quiescent point
_PRESSURE_SCAN_FACTOR = 8  # sharing is scanned for so much faster below state high


class VmKernel:
    """Policy for the VMs on ``machine``; ``own_frames`` are the VMkernel's.

    ``swap_pages`` is the host's swap space, None if it is not bounded.
    """

    def __init__(
        self,
        machine: MachineFrames,
        options: MemoryOptions,
        *,
        seed: int = 1,
        swap_pages: int | None = None,
        own_frames: int = 0,
    ) -> None:
        self.machine = machine
        self.options = options
        self.own_frames = own_frames
        self.vms: list[ManagedVm] = []
        self.departed: list[VmMemory] = []  # the last word on VMs that are off
        self.time_ns = 0
        self.events = EventLog(options.event_log)
        managed = machine.frames - own_frames
        self.min_free = minimum_free_pages(managed, options.min_free_pct)
        self.state = HostStateMachine(self.min_free, options.high_pct)
        self.admission = Admission(managed - self.min_free, swap_pages)
        self.sharing = PageSharing(np.random.default_rng((seed, 1)))
        self._seed = seed
        self._salts: dict[str, int] = {}
        self._withdrawn: list[Any] = []
        self._large_pages_due_ns = 0
        self._balance_due_ns = 0
        self._sample_due_ns = 0
        self.reclaimer = Reclaimer(self.vms, options, self.state, self.events)

    @property
    def free(self) -> int:
        """Free frames, with those in the reserves of VMs beyond what each has to keep."""
        lent = sum(max(vm.guest.reserve - MINIMUM_GRANT, 0) for vm in self.vms)
        return self.machine.free_frames + lent

    # Power -------------------------------------------------------------------------------------

    def salt(self, vm_id: int, group: str) -> int:
        """The salt of a VM under ``Mem.ShareForceSalting``; VMs of one salt may share."""
        salting = self.options.share_force_salting
        if salting is Salting.NONE:
            name = "everybody"
        elif group:
            name = f"group {group}"
        elif salting is Salting.GROUP_ELSE_ALL:
            name = "no group"
        else:
            name = f"VM {vm_id}"
        return self._salts.setdefault(name, len(self._salts))

    def make_room(self, frames: int, what: str) -> None:
        """Reclaim until ``frames`` frames are free beyond the border of state low."""
        for vm in self.vms:
            vm.granted -= vm.guest.give_back(MINIMUM_GRANT)
        need = frames + self.state.border(HARD_PERCENT) - self.machine.free_frames
        if need > 0:
            for vm in self.vms:
                vm.guest.settle()
                vm.refresh()
            self.reclaimer.take_pages(self.time_ns, need, f"{frames} pages for {what}")

    def withdraw(self, frames: int) -> int:
        """Take frames of machine memory out of use: memory that is removed, or given to others.

        Reclaims what it takes, but keeps reservations and the VMs' last frames; returns how many
        frames were withdrawn. ``give_memory_back`` ends it.
        """
        self.make_room(frames, "memory withdrawn from use")
        most = min(
            self.machine.free_frames - MINIMUM_GRANT * len(self.vms), self.admission.unreserved
        )
        count = max(min(frames, most), 0)
        if count:
            self._withdrawn.append(self.machine.allocate(count, kind=FrameKind.VMKERNEL))
            self.own_frames += count
            self._resized()
            self.events.record(self.time_ns, "", Mechanism.RESIZE, -count, "withdrawn from use")
        return count

    def _resized(self) -> None:
        """Minimum free memory and what can be reserved follow the memory that is managed."""
        managed = self.machine.frames - self.own_frames
        self.min_free = minimum_free_pages(managed, self.options.min_free_pct)
        self.state.min_free = self.min_free
        self.admission.memory = managed - self.min_free

    @property
    def withdrawn(self) -> int:
        """Frames out of use."""
        return sum(len(mpns) for mpns in self._withdrawn)

    def give_memory_back(self) -> int:
        """Put all withdrawn frames to use again; returns how many."""
        frames = self.withdrawn
        for mpns in self._withdrawn:
            self.machine.release(mpns)
        self._withdrawn = []
        self.own_frames -= frames
        self._resized()
        if frames:
            self.events.record(self.time_ns, "", Mechanism.RESIZE, frames, "in use again")
        return frames

    def power_on(self, guest: GuestMemory, settings: VmSettings, overhead: int) -> ManagedVm:
        """Manage a VM that ``admission`` has let in. Its frames are granted at once."""
        number = len(self.vms) + len(self.departed)  # vm_id differs from run to run
        random = np.random.default_rng((self._seed, 2, number))
        vm = ManagedVm(
            guest=guest,
            settings=settings,
            activity=Activity(guest, self.options.sample_pages, random),
            overhead_max=overhead,
            cache_max=self.cache_max(settings),
            balloon_max=int(settings.memory * self.options.ctl_max_percent / 100),
            usage=guest.usage(),
            random=random,
            target=float(settings.maximum),
        )
        self.vms.append(vm)
        self.sharing.add(guest)
        self.events.record(
            self.time_ns, vm.name, Mechanism.POWER_ON, settings.memory,
            f"{settings.shares} shares, reservation {settings.reservation}, "
            f"limit {settings.maximum} pages",
        )  # fmt: skip
        self._balance_due_ns = self.time_ns
        self._grant(vm, MINIMUM_GRANT)
        return vm

    def cache_max(self, settings: VmSettings) -> int:
        """Frames the VM's compression cache may take."""
        if not self.options.mem_zip_enable:
            return 0
        return int(settings.memory * self.options.mem_zip_max_pct / 100)

    def power_off(self, vm: ManagedVm) -> None:
        """Stop managing a VM. The caller gives its frames back afterwards."""
        vm.guest.settle()
        vm.refresh()
        self.departed.append(departed(self, vm))
        self.vms.remove(vm)
        self.sharing.remove(vm.guest)
        self.admission.leave(vm.settings, vm.overhead_max)
        self.events.record(
            self.time_ns, vm.name, Mechanism.POWER_OFF, round(vm.usage.consumed), "powered off"
        )
        self._balance_due_ns = self.time_ns

    # The quiescent point -----------------------------------------------------------------------

    def balance(self, elapsed_ns: int) -> None:
        """All VMs have stopped; ``elapsed_ns`` of virtual time have passed since the last call."""
        self.time_ns += elapsed_ns
        self._settle()
        if elapsed_ns:
            self._share(elapsed_ns)
        before = self.state.state
        free = self.free
        state = self._update_state(free)
        if self.time_ns >= self._balance_due_ns or state is not before:
            self._set_targets(free)
        if elapsed_ns:
            self.reclaimer.set_balloons(self.time_ns, free)
        if state >= HostState.HARD:
            self._reclaim(free)
        if elapsed_ns:
            self._manage_large_pages()
        self._grant_all()
        if elapsed_ns:
            # Last: pages watched from now on tell nothing before their guest has run.
            self._sample()
            self.reclaimer.prepare_victims(free)
            for vm in self.vms:
                vm.used = 0
        for vm in self.vms:
            vm.guest.submit_writes()

    def _settle(self) -> None:
        for vm in self.vms:
            vm.guest.settle()
            vm.used += max(vm.granted - vm.guest.reserve, 0)
            vm.granted = vm.guest.reserve
            vm.refresh()

    def _sample(self) -> None:
        if self.time_ns < self._sample_due_ns:
            return
        self._sample_due_ns = self.time_ns + int(self.options.sample_period * 1e9)
        for vm in self.vms:
            vm.activity.end_period()

    def _share(self, elapsed_ns: int) -> None:
        """Scan as far as the time that has passed allows; faster when memory is short."""
        minutes = self.options.share_scan_time
        if minutes == 0 or not self.vms:
            return
        part = elapsed_ns / 60e9 / minutes
        if self.state.state > HostState.HIGH:
            part *= _PRESSURE_SCAN_FACTOR
        total = sum(vm.guest.pages for vm in self.vms)
        most = self.options.share_rate_max * elapsed_ns / 1e9
        part = min(part, most / total)
        self.sharing.break_large = self.state.state > HostState.HIGH
        for vm in self.vms:
            shared = self.sharing.scan(vm.guest, vm.guest.pages * part)
            if shared:
                vm.refresh()
                self.events.record(
                    self.time_ns, vm.name, Mechanism.SHARE, shared, "scan found equal pages"
                )

    def _update_state(self, free: int) -> HostState:
        before = self.state.state
        state = self.state.update(free)
        if state is not before:
            percent = 100 * free / self.min_free if self.min_free else 0
            self.events.record(
                self.time_ns, "", Mechanism.STATE, free,
                f"{before.name.lower()} to {state.name.lower()}: free memory is {percent:.0f} % "
                "of minimum free memory",
            )  # fmt: skip
        return state

    def _set_targets(self, free: int) -> None:
        """What each VM is entitled to, with the host at the border of clear."""
        self._balance_due_ns = self.time_ns + int(self.options.balance_period * 1e9)
        if not self.vms:
            return
        usages = [vm.usage for vm in self.vms]
        total = sum(usage.consumed for usage in usages)
        total += free - self.state.border(CLEAR_PERCENT)
        entitled = targets(
            total,
            self.reclaimer.weights(self.vms),
            [min(vm.settings.reservation, vm.settings.maximum) for vm in self.vms],
            [vm.settings.maximum for vm in self.vms],
            [usage.in_use + vm.balloon_size for vm, usage in zip(self.vms, usages, strict=True)],
        )
        for vm, pages in zip(self.vms, entitled.tolist(), strict=True):
            if abs(pages - vm.target) >= max(vm.target / 100, 1):
                self.events.record(
                    self.time_ns, vm.name, Mechanism.TARGET, int(pages - vm.target),
                    f"entitled to {int(pages)} pages: {vm.settings.shares} shares, "
                    f"{100 * vm.activity.estimate:.0f} % active",
                )  # fmt: skip
                vm.target = pages

    def _reclaim(self, free: int) -> None:
        state = self.state.state
        need = self.reclaimer.shortage(free, SOFT_PERCENT)
        reason = f"state {state.name.lower()}: {need} pages missing to {SOFT_PERCENT} % of minimum"
        self.reclaimer.take_pages(self.time_ns, need, reason)
        self._update_state(self.free)

    def _manage_large_pages(self) -> None:
        """Make large pages in state high; below, break them, so that their pages can be shared."""
        if not self.options.large_pages or (
            self.state.state is HostState.HIGH and self.time_ns < self._large_pages_due_ns
        ):
            return
        left = _LARGE_PAGES_A_ROUND
        for vm in self.vms:
            if self.state.state > HostState.HIGH:
                changed, why = vm.guest.break_large(left), "broken: memory is short"
            elif self.machine.free_frames > self.state.border(self.options.high_pct) + 2 * 512:
                # Only a VM that has had new frames can have a new run of private pages.
                changed = vm.guest.make_large(left) if vm.used else 0
                why = "made: memory is plenty"
                if changed < 0:  # machine memory is in pieces: looking for runs costs a scan of it
                    self._large_pages_due_ns = self.time_ns + _LARGE_PAGES_BACKOFF_NS
                    break
            else:
                break
            left -= changed
            if changed:
                self.events.record(
                    self.time_ns, vm.name, Mechanism.LARGE_PAGE, changed * LARGE_PAGES, why
                )

    # Grants ------------------------------------------------------------------------------------

    def _grant_all(self) -> None:
        """Give each VM frames for its next quantum: twice what it used, within what is fair."""
        share = {vm: min(max(2 * vm.used, MINIMUM_GRANT), MAXIMUM_GRANT) for vm in self.vms}
        for vm, frames in share.items():
            vm.guest.give_back(frames)
        hungry = len([vm for vm in self.vms if vm.used or vm.waiting]) or 1
        for vm in self.vms:
            fair = self.machine.free_frames // (2 * hungry)
            wanted = share[vm] - vm.guest.reserve
            self._grant(vm, min(wanted, max(fair, MINIMUM_GRANT)))
            vm.granted = vm.guest.reserve

    def _grant(self, vm: ManagedVm, wanted: int) -> None:
        if vm.condition is Condition.PAUSED and not vm.waiting:
            return  # for a reason that frames do not cure
        over_target = vm.usage.consumed > vm.target
        if self.state.state is HostState.LOW and over_target and vm.guest.reserve < NEEDED_TO_RUN:
            self._starve(vm, Condition.BLOCKED, "host low on memory, VM above its target")
            return
        if vm.settings.limit is not None:
            wanted = min(wanted, self._room_under_limit(vm, wanted))
        short = wanted - self.machine.free_frames
        if short > 0 and vm.guest.reserve < NEEDED_TO_RUN:
            reason = f"{wanted} pages for {vm.name}"
            self.reclaimer.take_pages(self.time_ns, short, reason)
        wanted = min(wanted, self.machine.free_frames)
        if wanted > 0:
            vm.guest.grant(wanted)
        if vm.guest.reserve >= NEEDED_TO_RUN:
            self.resume(vm)
        else:
            self._starve(vm, Condition.WAITING, "no frame can be reclaimed")

    def _starve(self, vm: ManagedVm, condition: Condition, reason: str) -> None:
        """The VM gets no frames now: paused if a swap file that fails is the cause."""
        troubles = [other.guest.trouble for other in self.vms if other.guest.trouble]
        if troubles:
            condition, reason = Condition.PAUSED, troubles[0]
        self._stop(vm, condition, reason)

    def _room_under_limit(self, vm: ManagedVm, wanted: int) -> int:
        """Frames a VM may still get under its limit; at it, it has to give up others first."""
        room = vm.room - vm.guest.reserve
        if room < MINIMUM_GRANT and vm.guest.reserve < NEEDED_TO_RUN:
            need = max(wanted, MINIMUM_GRANT) - room
            self.reclaimer.take_from(self.time_ns, vm, need, "at its limit")
            room = vm.room - vm.guest.reserve
        return max(room, 0)

    def _stop(self, vm: ManagedVm, condition: Condition, reason: str) -> None:
        if (vm.condition, vm.reason) == (condition, reason):
            return
        vm.condition, vm.reason = condition, reason
        mechanism = Mechanism.BLOCK if condition is Condition.BLOCKED else Mechanism.PAUSE
        self.events.record(self.time_ns, vm.name, mechanism, 0, reason)

    def resume(self, vm: ManagedVm) -> None:
        """The VM can go on."""
        if vm.condition is not Condition.RUNNING:
            self.events.record(self.time_ns, vm.name, Mechanism.RESUME, 0, f"was {vm.condition}")
            vm.condition, vm.reason = Condition.RUNNING, ""

    def sample(self) -> Sample:
        """What there is to know now, at a quiescent point."""
        return sample(self)

    def pause(self, vm: ManagedVm, reason: str) -> None:
        """The VM cannot go on, for ``reason``; it is tried again at each quiescent point."""
        self._stop(vm, Condition.PAUSED, reason)
