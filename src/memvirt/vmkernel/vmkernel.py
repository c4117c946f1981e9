# SPDX-License-Identifier: Apache-2.0
"""The VMkernel: machine memory across all VMs of one host.

``balance`` is called at every quiescent point, with all processors stopped: it settles what the
VMs did meanwhile, runs what is due (sampling, sharing, targets), looks at free memory, reclaims
as the host's state demands, and grants each VM the frames it may use until the next time. All of
it depends on virtual time and the seed only.
"""

from __future__ import annotations

import numpy as np

from .activity import Activity
from .admission import Admission, VmSettings
from .controls import Controls, terms
from .events import EventLog, Mechanism
from .grants import Grants
from .host_state import (
    CLEAR_PERCENT,
    HARD_PERCENT,
    SOFT_PERCENT,
    HostStateMachine,
    minimum_free_pages,
)
from .large_pages import LargePageManager
from .managed import Condition, ManagedVm
from .options import MemoryOptions, Salting
from .policies import ALLOCATION, RECLAIM, VICTIMS
from .protocols import GuestMemory, MachineFrames
from .reclaim import Reclaimer
from .report import departed, sample
from .samples import HostState, Sample, VmMemory
from .sharing import PageSharing

_PRESSURE_SCAN_FACTOR = 8  # sharing is scanned for so much faster below state high


class CannotWithdraw(Exception):
    """Machine memory cannot be taken out of use on this host."""


class VmKernel:
    """Policy for the VMs on ``machine``; ``own_frames`` are the VMkernel's.

    ``swap_pages`` is the host's swap space, None if it is not bounded. The policies are those that
    ``options`` name. Raises UnknownPolicy for a name that is not registered any more.
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
        self._withdrawn: list[tuple[int, object]] = []
        self._balance_due_ns = 0
        self._sample_due_ns = 0

        def clock() -> int:
            return self.time_ns

        self.reclaimer = Reclaimer(
            self.vms,
            self.state,
            self.events,
            clock,
            allocation=ALLOCATION.make(options.allocation, options),
            victims=VICTIMS.make(options.swap_victims, options),
            mechanisms={name: RECLAIM.make(name, options) for name in options.reclaim},
        )
        self.grants = Grants(machine, self.vms, self.state, self.reclaimer, self.events, clock)
        self.controls = Controls(
            machine, self.admission, self.state, self.grants, self.events, clock, self._due_now
        )
        self._large_pages = LargePageManager(
            machine, self.vms, self.state, options.high_pct, self.events, clock
        )

    @property
    def free(self) -> int:
        """Free frames, with those in the reserves of VMs beyond what each has to keep."""
        return self.machine.free_frames + self.grants.lent

    def _due_now(self) -> None:
        """Compute the targets at the next quiescent point."""
        self._balance_due_ns = self.time_ns

    def _record(self, vm: ManagedVm, mechanism: str, pages: int, reason: str) -> None:
        self.events.record(self.time_ns, vm.name, mechanism, pages, reason)

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
        self.grants.take_back()
        need = frames + self.state.border(HARD_PERCENT) - self.machine.free_frames
        if need > 0:
            for vm in self.vms:
                vm.guest.settle()
                vm.refresh()
            self.reclaimer.take_pages(need, f"{frames} pages for {what}")

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
            swap_reserved=settings.swap,
            target=float(settings.maximum),
        )
        self.vms.append(vm)
        self.sharing.add(guest)
        self._record(vm, Mechanism.POWER_ON, settings.memory, terms(settings))
        self._balance_due_ns = self.time_ns
        self.grants.grant(vm, vm.minimum_grant)
        return vm

    def cache_max(self, settings: VmSettings) -> int:
        """Frames the VM's compression cache may take."""
        if not self.options.mem_zip_enable or Mechanism.COMPRESS not in self.options.reclaim:
            return 0
        return int(settings.memory * self.options.mem_zip_max_pct / 100)

    def power_off(self, vm: ManagedVm) -> None:
        """Stop managing a VM. The caller gives its frames back afterwards."""
        vm.guest.settle()
        vm.refresh()
        self.departed.append(departed(self, vm))
        self.vms.remove(vm)
        self.sharing.remove(vm.guest)
        self.admission.leave(vm.settings, vm.overhead_max, vm.swap_reserved)
        self._record(vm, Mechanism.POWER_OFF, round(vm.usage.consumed), "powered off")
        self._balance_due_ns = self.time_ns

    # The quiescent point -----------------------------------------------------------------------

    def balance(self, elapsed_ns: int) -> None:
        """All VMs have stopped; ``elapsed_ns`` of virtual time have passed since the last call."""
        self.time_ns += elapsed_ns
        self.settle()
        if elapsed_ns:
            self._share(elapsed_ns)
        before = self.state.state
        free = self.free
        state = self._update_state(free)
        if self.time_ns >= self._balance_due_ns or state is not before:
            self._set_targets(free)
        if elapsed_ns:
            self.reclaimer.adjust(free)
        self._enforce_limits()
        if state >= HostState.HARD:
            self._reclaim(free)
        if elapsed_ns and self.options.large_pages:
            self._large_pages.manage()
        self.grants.grant_all()
        if elapsed_ns:
            # Last: pages watched from now on tell nothing before their guest has run.
            self._sample()
            self.reclaimer.prepare_victims(free)
            for vm in self.vms:
                vm.used = 0
        for vm in self.vms:
            if vm.guest.reclaim is not None:
                vm.guest.reclaim.submit_writes()

    def settle(self) -> None:
        """Bring what is known of all VMs up to date, after they have run."""
        for vm in self.vms:
            vm.guest.settle()
            vm.refresh()
        self.grants.settle()

    def _sample(self) -> None:
        if self.time_ns < self._sample_due_ns:
            return
        self._sample_due_ns = self.time_ns + int(self.options.sample_period * 1e9)
        for vm in self.vms:
            vm.end_sampling_period()

    def _share(self, elapsed_ns: int) -> None:
        """Scan as far as the time that has passed allows; faster when memory is short."""
        minutes = self.options.share_scan_time
        if minutes == 0 or not self.vms:
            return
        part = elapsed_ns / 60e9 / minutes
        if self.state.state > HostState.HIGH:
            part *= _PRESSURE_SCAN_FACTOR
        total = sum(vm.settings.memory for vm in self.vms)
        most = self.options.share_rate_max * elapsed_ns / 1e9
        part = min(part, most / total)
        self.sharing.break_large = self.state.state > HostState.HIGH
        for vm in self.vms:
            shared = self.sharing.scan(vm.guest, vm.guest.pages * part)
            if shared:
                vm.refresh()
                shared *= vm.guest.granule
                self._record(vm, Mechanism.SHARE, shared, "scan found equal pages")

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
        total = sum(vm.usage.consumed for vm in self.vms)
        total += free - self.state.border(CLEAR_PERCENT)
        entitled = self.reclaimer.targets(total)
        for vm, pages in zip(self.vms, entitled.tolist(), strict=True):
            if abs(pages - vm.target) >= max(vm.target / 100, 1):
                self._record(
                    vm, Mechanism.TARGET, int(pages - vm.target),
                    f"entitled to {int(pages)} pages: {vm.settings.shares} shares, "
                    f"{100 * vm.active:.0f} % active",
                )  # fmt: skip
                vm.target = pages

    def _enforce_limits(self) -> None:
        """Take what lies above a limit that somebody has lowered."""
        for vm in self.vms:
            if not vm.over_limit:
                continue
            if vm.guest.frames is not None:
                vm.guest.frames.give_back(0)
                vm.granted = vm.reserve
            above = -vm.room
            vm.over_limit = above > 0 and self.reclaimer.take_from(vm, above, "above its limit") > 0

    def _reclaim(self, free: int) -> None:
        state = self.state.state
        need = self.reclaimer.shortage(free, SOFT_PERCENT)
        reason = f"state {state.name.lower()}: {need} pages missing to {SOFT_PERCENT} % of minimum"
        self.reclaimer.take_pages(need, reason)
        self._update_state(self.free)

    # Machine memory that changes ---------------------------------------------------------------

    def withdraw(self, frames: int) -> int:
        """Take frames of machine memory out of use: memory that is removed, or given to others.

        Reclaims what it takes, but keeps reservations and the VMs' last frames; returns how many
        frames were withdrawn. ``give_memory_back`` ends it. Raises CannotWithdraw on a host whose
        free memory another kernel manages.
        """
        pool = self.machine.pool
        if pool is None:
            raise CannotWithdraw("this host's kernel manages its free memory: it cannot be resized")
        self.make_room(frames, "memory withdrawn from use")
        most = min(
            self.machine.free_frames - sum(vm.minimum_grant for vm in self.vms),
            self.admission.unreserved,
        )
        count = max(min(frames, most), 0)
        if count:
            self._withdrawn.append((count, pool.withdraw(count)))
            self._resized(count)
            self.events.record(self.time_ns, "", Mechanism.RESIZE, -count, "withdrawn from use")
        return count

    @property
    def withdrawn(self) -> int:
        """Frames out of use."""
        return sum(count for count, _ in self._withdrawn)

    def give_memory_back(self) -> int:
        """Put all withdrawn frames to use again; returns how many."""
        frames, pool = self.withdrawn, self.machine.pool
        for _, withdrawn in self._withdrawn:
            assert pool is not None
            pool.put_back(withdrawn)
        self._withdrawn = []
        self._resized(-frames)
        if frames:
            self.events.record(self.time_ns, "", Mechanism.RESIZE, frames, "in use again")
        return frames

    def _resized(self, frames: int) -> None:
        """Minimum free memory and what can be reserved follow the memory that is managed."""
        self.own_frames += frames
        managed = self.machine.frames - self.own_frames
        self.min_free = minimum_free_pages(managed, self.options.min_free_pct)
        self.state.min_free = self.min_free
        self.admission.memory = managed - self.min_free

    # Conditions and samples --------------------------------------------------------------------

    def pause(self, vm: ManagedVm, reason: str) -> None:
        """The VM cannot go on, for ``reason``; it is tried again at each quiescent point."""
        self.grants.stop(vm, Condition.PAUSED, reason)

    def resume(self, vm: ManagedVm) -> None:
        """The VM can go on, unless somebody holds it or it is throttled."""
        self.controls.go_on(vm)

    def throttle(self, vm: ManagedVm, reason: str) -> None:
        """The VM's host lets it sit out, until ``end_throttle``. Its memory is managed as ever."""
        vm.throttled = reason
        self.resume(vm)

    def end_throttle(self, vm: ManagedVm) -> None:
        """The VM may run again, unless somebody holds it."""
        vm.throttled = ""
        self.resume(vm)

    def sample(self) -> Sample:
        """What there is to know now, at a quiescent point."""
        return sample(self)
