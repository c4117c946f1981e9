# SPDX-License-Identifier: Apache-2.0
"""How much of its memory a live VM uses, without an agent in the guest.

As in OSDI 2002 section 5.3 a few random pages of each VM are watched in each period; the part of
them that is touched estimates the active fraction. The ways to watch, best first:

=============  =====================================================  ===========================
way            sees                                                   price
=============  =====================================================  ===========================
``damon``      frames, one by one, under KVM too                      the host's one DAMON is held
``idle``       frames, one by one, under KVM too                      none
``clear-refs`` all of the VM's memory, but not what a guest touches   the host's own reclaim
               under KVM                                              forgets what QEMU used
=============  =====================================================  ===========================

``clear-refs`` is never chosen by itself. A VM that could not be measured is unknown, not idle.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from memvirt.address import HostVirtualAddress

from .activity import LiveActivity
from .damon import Damon, damon_problem
from .errors import KernelFeatureMissing, LiveError, ProcessGone
from .idle_pages import IdlePages, idle_pages_problem
from .kernel_pages import PAGEMAP_FRAME, PAGEMAP_PRESENT, ZERO_PAGE, KernelPages, Pagemap
from .process import Process
from .ram import RamLayout
from .vm import LiveVm
from .working_set_way import DEFAULT_PERIOD_SECONDS, WorkingSetWay

DEFAULT_SAMPLE_PAGES = 100  # a VM and period, as ESXi's Mem.SampleActivePctMin has it


class FrameWatcher(Protocol):
    """Something that tells of frames whether they are touched."""

    def touched(self, mpns: Sequence[int], seconds: float) -> dict[int, bool]: ...

    def cpu_seconds(self) -> float: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def choose_watcher(way: WorkingSetWay) -> tuple[FrameWatcher | None, str, str]:
    """A watcher of frames, the name of the way, and why there is none.

    Raises KernelFeatureMissing or another LiveError only for a way that was asked for by name.
    """
    if way is WorkingSetWay.OFF:
        return None, "off", "switched off"
    if way is WorkingSetWay.CLEAR_REFS:
        return None, "clear-refs", ""
    problems = []
    if way in (WorkingSetWay.AUTO, WorkingSetWay.DAMON):
        try:
            return Damon(), "damon", ""
        except LiveError as error:
            if way is WorkingSetWay.DAMON:
                raise
            problems.append(damon_problem() or str(error))
    if idle := idle_pages_problem():
        if way is WorkingSetWay.IDLE:
            raise KernelFeatureMissing(idle)
        problems.append(idle)
        problems.append("--working-set clear-refs measures VMs without KVM")
        return None, "none", "; ".join(problems)
    return IdlePages(), "idle", ""


class SampledVm:
    """What sampling needs of a live VM, with handles of its own: another thread may use and close
    it whatever becomes of the LiveVm. Use as a context manager, or ``close`` it."""

    def __init__(self, vm: LiveVm) -> None:
        self.name = vm.name
        self.layout: RamLayout = vm.layout
        self.process: Process = vm.process.duplicate()
        self.pagemap = Pagemap(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the handles; may be called again."""
        self.pagemap.close()
        self.process.close()


@dataclass(frozen=True)
class WatchedPages:
    """What became known of some pages of one VM. Arrays have the length of what was asked."""

    name: str
    known: Any  # of which pages it is known whether they were touched
    touched: Any  # which were; False where it is not known
    error: str = ""  # why nothing is known


@dataclass(frozen=True, slots=True)
class PeriodResult:
    """One VM's sample of one period."""

    name: str
    sampled: int
    touched: int
    error: str = ""  # why it could not be measured

    @property
    def fraction(self) -> float | None:
        """The touched part, None if it could not be measured."""
        return self.touched / self.sampled if self.sampled else None


def draw_sample(vm: SampledVm, pages: int, random: np.random.Generator) -> Any:
    """Random pages of a VM, by RAM page index, sorted; pages without a frame are among them."""
    count = min(pages, vm.layout.pages)
    return np.sort(random.choice(vm.layout.pages, count, replace=False))


def _frames_of(vm: SampledVm, indices: Any, kernel: KernelPages | None) -> Any:
    """Frames of pages now, 0 for none. The host's page of zeroes is no frame of a VM's: all its
    users would count as touched with any of them."""
    addresses = vm.layout.host_addresses_of(indices)
    entries = np.array([vm.pagemap.entries(int(address), 1)[0] for address in addresses], np.uint64)
    mpns = np.where((entries & PAGEMAP_PRESENT) != 0, entries & PAGEMAP_FRAME, np.uint64(0))
    if kernel is not None:
        mpns[(kernel.flags(mpns) & ZERO_PAGE) != 0] = 0
    return mpns


def watch_pages(
    watcher: FrameWatcher,
    drawn: Sequence[tuple[SampledVm, Any]],
    seconds: float,
    kernel: KernelPages | None,
) -> list[WatchedPages]:
    """Watch pages of VMs, by RAM page index, for ``seconds``; waits as long.

    A page without a frame is untouched, unless it has one at the end. A merged frame counts as
    touched with any of its pages. For a VM that ends meanwhile, or whose frames this user may not
    see, nothing is known. ``kernel`` tells the host's page of zeroes from frames.
    """
    watched: list[tuple[SampledVm, Any, Any]] = []
    results: dict[str, WatchedPages] = {}

    def nothing(vm: SampledVm, indices: Any, error: str) -> WatchedPages:
        none = np.zeros(indices.size, np.bool_)
        return WatchedPages(vm.name, none, none, error)

    for vm, indices in drawn:
        try:
            watched.append((vm, indices, _frames_of(vm, indices, kernel)))
        except (LiveError, OSError) as error:
            results[vm.name] = nothing(vm, indices, str(error))
    frames = [int(mpn) for _, _, mpns in watched for mpn in mpns if mpn]
    answers = watcher.touched(frames, seconds) if frames else {}
    for vm, indices, before in watched:
        try:
            after = _frames_of(vm, indices, kernel)
        except (LiveError, OSError) as error:
            results[vm.name] = nothing(vm, indices, str(error))
            continue
        had = before != 0
        told = np.array([answers.get(int(mpn)) is not None for mpn in before], np.bool_)
        said = np.array([bool(answers.get(int(mpn))) for mpn in before], np.bool_)
        moved = had & ~told & (before != after)  # the frame has gone to somebody else
        known = ~had | told | moved
        touched = np.where(had, said, after != 0)
        if had.any() and not (known & had).any():
            results[vm.name] = nothing(vm, indices, "the kernel said nothing of its pages")
        else:
            results[vm.name] = WatchedPages(vm.name, known, touched)
    return [results[vm.name] for vm, _ in drawn]


def sample_frames(
    watcher: FrameWatcher,
    vms: Sequence[SampledVm],
    seconds: float,
    pages: int,
    random: np.random.Generator,
    kernel: KernelPages | None,
) -> list[PeriodResult]:
    """One period by random sampling, as ``watch_pages`` has it; waits ``seconds``.

    A VM of which nothing is known gets a result with an error.
    """
    drawn: list[tuple[SampledVm, Any]] = []
    results = []
    for vm in vms:
        try:
            drawn.append((vm, draw_sample(vm, pages, random)))
        except (LiveError, OSError) as error:
            results.append(PeriodResult(vm.name, 0, 0, str(error)))
    for seen in watch_pages(watcher, drawn, seconds, kernel):
        known, touched = np.count_nonzero(seen.known), np.count_nonzero(seen.touched)
        results.append(PeriodResult(seen.name, int(known), int(touched), seen.error))
    return results


def referenced_pages(vm: SampledVm) -> int:
    """Pages of the VM's RAM referenced since the last ``clear_refs``, by ``smaps``."""
    text = vm.process.read("smaps").decode("utf-8", "surrogateescape")
    inside, total = False, 0
    for line in text.splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            start = int(head.partition("-")[0], 16)
            inside = vm.layout.block_of_host(HostVirtualAddress(start)) is not None
        elif inside and head == "Referenced:":
            total += int(rest.split()[0]) // 4
    return total


def sample_references(
    vms: Sequence[SampledVm], seconds: float, wait: Callable[[float], object]
) -> list[PeriodResult]:
    """One period by ``clear_refs``: all of the memory of VMs whose guest code QEMU itself runs."""
    started, results = [], []
    for vm in vms:
        if uses_kvm(vm.process):
            results.append(
                PeriodResult(vm.name, 0, 0, "clear-refs is blind to what a guest under KVM touches")
            )
            continue
        try:
            vm.process.write("clear_refs", b"1")
            started.append(vm)
        except (LiveError, OSError) as error:
            results.append(PeriodResult(vm.name, 0, 0, str(error)))
    wait(seconds)
    for vm in started:
        try:
            results.append(PeriodResult(vm.name, vm.layout.pages, referenced_pages(vm)))
        except (LiveError, OSError) as error:
            results.append(PeriodResult(vm.name, 0, 0, str(error)))
    return results


def uses_kvm(process: Process) -> bool:
    """True if the process has KVM open, whatever its command line says."""
    try:
        for entry in process.list("fd"):
            try:
                if process.read_link(f"fd/{entry}").startswith(("anon_inode:kvm", "/dev/kvm")):
                    return True
            except OSError:
                continue
    except ProcessGone:
        pass
    return False


class WorkingSets:
    """Measures in the background, period after period, what a host's live VMs use.

    Use as a context manager, or ``close`` it: then the kernel's state is as it was.
    """

    def __init__(
        self,
        vms: Callable[[], Sequence[SampledVm]],
        *,
        way: WorkingSetWay = WorkingSetWay.AUTO,
        period: float = DEFAULT_PERIOD_SECONDS,
        pages: int = DEFAULT_SAMPLE_PAGES,
        seed: int | None = None,
        kernel: KernelPages | None = None,
    ) -> None:
        self._kernel = kernel
        self._vms = vms
        self._period, self._pages = period, pages
        self._random = np.random.default_rng(seed)
        self._watcher, self.way, self.problem = choose_watcher(way)
        self._lock = threading.Lock()
        self._activity: dict[str, LiveActivity] = {}
        self._errors: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if self._watcher is not None or self.way == "clear-refs":
            self._thread = threading.Thread(
                target=self._run, name="memvirt-working-set", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> WorkingSets:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.ExitStack() as handles:
                vms = [handles.enter_context(vm) for vm in self._vms()]
                results = self._period_of(vms)
            if not self._stop.is_set():
                self._add(results)
            if all(result.error for result in results):
                self._stop.wait(1.0)

    def _period_of(self, vms: Sequence[SampledVm]) -> list[PeriodResult]:
        try:
            if not vms:
                return []
            if self._watcher is None:
                return sample_references(vms, self._period, self._stop.wait)
            return sample_frames(
                self._watcher, vms, self._period, self._pages, self._random, self._kernel
            )
        except (LiveError, OSError) as error:
            return [PeriodResult(vm.name, 0, 0, str(error)) for vm in vms]

    def _add(self, results: Sequence[PeriodResult]) -> None:
        with self._lock:
            for result in results:
                if result.fraction is None:
                    self._errors[result.name] = result.error
                else:
                    self._errors.pop(result.name, None)
                    self._activity.setdefault(result.name, LiveActivity()).add(result.fraction)

    def activity(self, name: str) -> LiveActivity:
        """The averages of a VM so far; without any period, all None."""
        with self._lock:
            known = self._activity.get(name, LiveActivity())
            return LiveActivity(known.slow, known.fast, known.periods)

    def forget(self, name: str) -> None:
        """A VM has ended: another one of its name is not as active as it was."""
        with self._lock:
            self._activity.pop(name, None)
            self._errors.pop(name, None)

    def error(self, name: str) -> str:
        """Why the last period of a VM could not be measured; "" if it was, or none has ended."""
        with self._lock:
            return self._errors.get(name, self.problem)

    def cpu_seconds(self) -> float:
        """Processor time the kernel spends for it outside of this process."""
        return self._watcher.cpu_seconds() if self._watcher is not None else 0.0

    def close(self) -> None:
        """Stop, and leave the kernel as it was; may be called again."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.interrupt()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._watcher is not None:
            self._watcher.close()
