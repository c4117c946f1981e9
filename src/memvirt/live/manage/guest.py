# SPDX-License-Identifier: Apache-2.0
"""A live VM as the VMkernel sees it: ``vmkernel.protocols.GuestMemory`` on a VM of QEMU's.

Its pages are numbered by RAM page index (``live.ram``), since not every page has a PPN. It is
measured by ``look``, before the VMkernel decides, and acted upon in two ways: pages are evicted at
once, the balloon's target is only noted until ``act`` tells QEMU. What could not be measured has no
levers: nothing is decided on a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from memvirt.live.answers import balloon_bytes, run_state, understood
from memvirt.live.errors import CommandError, LiveError, ProcessGone
from memvirt.live.kernel_pages import KernelPages
from memvirt.live.libvirt_domain import LibvirtMonitor
from memvirt.live.migration import why_on_the_move
from memvirt.live.page_states import PageStates, has_pager
from memvirt.live.process import resident_pages
from memvirt.live.vm import LiveVm
from memvirt.vmkernel.protocols import ActivitySampling, KeptPages, MemoryUsage

from .balloon import LiveBalloon
from .eviction import HostSwap, KernelReclaim
from .group_reclaim import GroupReclaim

# After a monitor could not be asked: one that hangs costs seconds each time.
_RETRY_SECONDS, _MOST_RETRY_SECONDS = 10.0, 160.0


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """How a VM is looked at and what may be done to it."""

    balloon: bool
    pageout: bool
    group_reclaim: bool
    scan_share: float
    balloon_patience: float
    balloon_retry: float
    dry_run: bool


class LiveGuest:
    """One VM. ``close`` it at the end."""

    granule = 1
    sharing = frames = large_pages = None

    def __init__(
        self,
        vm: LiveVm,
        kernel: KernelPages | None,
        swap: HostSwap,
        options: GuestOptions,
        sampling: ActivitySampling | None,
        *,
        group: GroupReclaim | None = None,
        note: Callable[[str], object] = lambda text: None,
        expect_out: Callable[[int], object] = lambda pages: None,
    ) -> None:
        """``note`` takes events, ``expect_out`` what goes on record (``EvictedGuest``)."""
        self.vm = vm
        self.name = vm.name
        self.vm_id = vm.pid
        self.started = vm.process.start_time()
        self.pages = vm.layout.pages
        self.unmeasured = "not looked at yet"  # why nothing may be done to it; "" if it may
        self.monitor_problem = ""
        self.run_state = "unknown"
        self.has_pager = False
        self.pretended = 0  # dry run: frames its balloon would have given
        self._kernel = kernel
        self._options = options
        self._sampling = sampling
        self._device = LiveBalloon(options.balloon_patience, options.balloon_retry)
        self.group = group if options.group_reclaim else None
        self.note, self.expect_out = note, expect_out
        self._reclaim = KernelReclaim(self, swap, advice=options.pageout, dry_run=options.dry_run)
        self._states: PageStates | None = None
        self._usage = MemoryUsage(private=0, unmapped=self.pages)
        self._overhead = 0
        self._rss = self._rss_at_scan = 0
        self._next_scan = 0.0
        self._ask_at = 0.0
        self._retry = _RETRY_SECONDS
        self._left_alone = ""  # why its memory is not to be managed, however well it is measured
        self._plugged = False

    def close(self) -> None:
        """Give everything back that is held open; may be called again."""
        self._reclaim.close()
        self.vm.close()

    # What the VMkernel asks -------------------------------------------------------------------

    def usage(self) -> MemoryUsage:
        return self._usage

    def settle(self) -> None:
        """Nothing: ``look`` has been called before."""

    @property
    def trouble(self) -> str:
        return self._reclaim.trouble

    @property
    def balloon(self) -> LiveBalloon | None:
        return None if self.unmeasured or not self._options.balloon else self._device

    @property
    def sampling(self) -> ActivitySampling | None:
        return self._sampling

    @property
    def reclaim(self) -> KernelReclaim | None:
        return None if self.unmeasured or self._reclaim.impossible else self._reclaim

    # What the manager asks --------------------------------------------------------------------

    @property
    def device(self) -> LiveBalloon:
        """The balloon, whether it may be used now or not."""
        return self._device

    @property
    def evictor(self) -> KernelReclaim:
        """Eviction, whether it may be used now or not."""
        return self._reclaim

    @property
    def levers(self) -> list[str]:
        """What may be used on it now, in order: so that what is done later surprises nobody."""
        balloon = ["balloon"] if self._options.balloon and self._device.connected else []
        return balloon + ([] if self._reclaim.impossible else self._reclaim.levers)

    @property
    def overhead(self) -> int:
        """Pages QEMU needs itself."""
        return self._overhead

    @property
    def charged(self) -> int:
        """Frames of its process that count against the host's budget."""
        if self.unmeasured:
            return self._rss  # that much is known, whatever is not
        return round(self._usage.consumed) + self._overhead

    @property
    def states(self) -> PageStates | None:
        """The states of its pages at the last look at all of them."""
        return self._states

    def look(self, now: float, wanted: bool = False) -> None:
        """Measure it. ``wanted``: all pages, whatever it costs. Raises ProcessGone."""
        self.vm.process.require_alive()
        self._ask(now)
        try:
            rss = self._rss = resident_pages(self.vm.process)
            if self._states is None or wanted or now >= self._next_scan:
                self._scan(rss, now)
            else:
                self._follow(rss)
        except ProcessGone:
            raise
        except (LiveError, OSError) as error:
            self.unmeasured = str(error)
        self.unmeasured = self._left_alone or self.unmeasured

    def _scan(self, rss: int, now: float) -> None:
        before = time.thread_time()
        self._states = self.vm.page_states(self._kernel)
        self.has_pager = any(has_pager(self.vm.process, b) for b in self.vm.layout.blocks)
        cost = time.thread_time() - before
        self._next_scan = now + cost / self._options.scan_share
        counts = self._states.counts()
        if counts.private is None or counts.consumed is None or counts.shared is None:
            self.unmeasured = "the states of its pages cannot be told; run memvirt as root"
            return
        granted = counts.private + counts.shared
        self._rss_at_scan = rss
        self._overhead = max(rss - granted, 0)
        self.unmeasured = ""
        self._count(counts.private, counts.shared, counts.consumed - counts.private,
                    counts.swapped or 0)  # fmt: skip

    def _count(self, private: int, shared: int, shared_cost: float, swapped: int) -> None:
        out = self._reclaim
        pretended = out.pretended
        private = max(private - pretended - self.pretended, 0)
        swapped += pretended
        self._usage = MemoryUsage(
            private=private,
            shared=shared,
            shared_cost=shared_cost,
            unmapped=max(self.pages - private - shared - swapped, 0),
            kept={"swap": KeptPages(swapped, put_total=out.put_total, taken_total=out.taken_total)},
        )

    def _follow(self, rss: int) -> None:
        """Between two looks at all pages: what its process has more or less."""
        assert self._states is not None
        counts = self._states.counts()
        if counts.private is None or counts.shared is None or counts.consumed is None:
            return
        change = rss - self._rss_at_scan
        private = min(max(counts.private + change, 0), self.pages - counts.shared)
        self.unmeasured = ""
        swapped = counts.swapped or 0
        self._count(private, counts.shared, counts.consumed - counts.private,
                    min(swapped, self.pages - private - counts.shared))  # fmt: skip

    def rescan(self) -> None:
        """Look at all pages again, after some were evicted or brought back. Raises as ``look``."""
        self._scan(resident_pages(self.vm.process), self._next_scan)

    def pretend(self) -> None:
        """Dry run: as if the guest had followed its balloon's target at once."""
        change = self._device.target - self._device.size
        self.pretended = max(self.pretended + change, 0)
        self._device.size = self._device.target

    # QMP --------------------------------------------------------------------------------------

    def _ask(self, now: float) -> None:
        """Run state and balloon; a VM that cannot be asked has no balloon for now."""
        if now < self._ask_at:
            self._device.lost()
            return
        try:
            with understood(self.name):
                self._take_answers(now)
            self.monitor_problem = ""
            self._retry = _RETRY_SECONDS
        except LiveError as error:
            if isinstance(error, ProcessGone):
                raise
            self._device.lost()
            self.run_state = "unknown"
            self.monitor_problem = str(error)
            self._ask_at = now + self._retry
            self._retry = min(2 * self._retry, _MOST_RETRY_SECONDS)
        finally:
            self.vm.release_monitor()

    def _compare_size(self, total: int) -> None:
        """Memory that was plugged in or out is not what the file says. Raises LiveError."""
        if total != self.pages:
            self._plugged = True
            self._left_alone = self._left_alone or (
                f"memory was plugged in or out ({self.pages} to {total} pages); say so in the file "
                "and start memvirt manage again"
            )
        elif self._plugged:
            self.vm.refresh_layout()  # as many pages as before, but not where they were
            self._reclaim.layout_changed()
            self._states = None
            self._plugged = False

    def _take_answers(self, now: float) -> None:
        monitor = self.vm.ask()
        self.run_state = run_state(monitor)
        size = monitor.execute("query-memory-size-summary")
        total = (int(size["base-memory"]) + int(size.get("plugged-memory", 0))) >> 12
        self._left_alone = why_on_the_move(monitor, self.run_state)
        self._compare_size(total)
        try:
            actual = balloon_bytes(monitor) >> 12
        except CommandError as error:
            if error.error_class != "DeviceNotActive":
                raise
            self._device.lost()
        else:
            given = 0 if not self._options.dry_run else self.pretended
            self._device.seen(max(total - actual, 0) + given, now)

    def act(self, now: float) -> bool:
        """Tell QEMU the balloon's target if it is a new one; True if it was told.

        Raises MonitorError; the target is told again the next time.
        """
        wanted = self._device.wanted
        if wanted is None or not self._device.connected:
            return False
        try:
            set_balloon(self.vm, (self.pages - wanted) << 12)
        finally:
            self.vm.release_monitor()
        self._device.told(wanted, now)
        return True

    def execute(self, command: str) -> None:
        """One QMP command without arguments. Raises MonitorError."""
        try:
            self.vm.ask().execute(command)
        finally:
            self.vm.release_monitor()


def set_balloon(vm: LiveVm, memory_bytes: int) -> None:
    """Let the guest have ``memory_bytes``, by QMP or libvirt's own call. Raises MonitorError."""
    monitor = vm.ask()
    if isinstance(monitor, LibvirtMonitor):
        monitor.set_memory(memory_bytes)
    else:
        monitor.execute("balloon", {"value": memory_bytes})
