# SPDX-License-Identifier: Apache-2.0
"""Which pages of live VMs are touched: the VMkernel's samples, watched in a thread of its own.

DAMON and idle page tracking watch for a time and answer at its end; the VMkernel draws a sample
and asks later. So all VMs' samples that were drawn at one quiescent point make one *round*. Until
it has ended, and if it fails, nothing is known, and the VMkernel is told so: it is not idleness.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import numpy as np

from memvirt.address import PpnArray
from memvirt.live.errors import LiveError
from memvirt.live.kernel_pages import KernelPages
from memvirt.live.vm import LiveVm
from memvirt.live.working_set import (
    FrameWatcher,
    SampledVm,
    WatchedPages,
    choose_watcher,
    watch_pages,
)
from memvirt.live.working_set_way import WorkingSetWay
from memvirt.vmkernel.protocols import Flags

_KNOWN_PART = 0.5  # of a sample that has to be known
_LOOK_AGAIN_SECONDS = 60.0  # for a watcher, while there is none


class VmSampling:
    """``vmkernel.protocols.ActivitySampling`` of one VM; pages are RAM page indices."""

    def __init__(self, vm: LiveVm) -> None:
        self.vm = vm
        self.drawn: PpnArray | None = None  # a sample that no round has yet
        self.error = ""
        self._pages: PpnArray | None = None  # of the last round that ended
        self._untouched: Flags | None = None

    def begin_sample(self, ppns: PpnArray) -> None:
        """The next round watches these pages."""
        self.drawn = PpnArray(np.array(ppns, np.int64))
        self._pages = None

    def untouched(self, ppns: PpnArray) -> Flags | None:
        """As the protocol has it; ``ppns`` are the last sample's."""
        if self._pages is None or not np.array_equal(self._pages, ppns):
            return None
        return np.asarray(self._untouched)

    def watch(self, ppns: PpnArray) -> None:
        """Nothing: Linux keeps what it knows of single pages to itself; victims are random."""

    def idle(self, ppns: PpnArray) -> Flags:
        return np.zeros(np.shape(ppns), np.bool_)

    def ended(self, pages: PpnArray, seen: WatchedPages) -> None:
        """A round with ``pages`` has ended. Pages of which nothing is known count as touched."""
        self.error = seen.error
        if self.drawn is not None:
            return  # too late: there is a newer sample
        known = int(np.count_nonzero(seen.known))
        if seen.error or known < _KNOWN_PART * len(pages):
            self.error = seen.error or f"of {len(pages)} pages only {known} could be watched"
            return
        self._untouched = seen.known & ~seen.touched
        self._pages = pages


class Sampler:
    """Carries rounds out in the background. ``close`` gives the watcher back.

    ``choose`` gives a watcher, the name of its way, and why there is none (``choose_watcher``).
    Without one nothing is sampled, and one is looked for again now and then: whoever holds DAMON
    may let it go. ``say`` gets a line whenever that changes. Raises what ``choose`` raises when it
    is first called.
    """

    def __init__(
        self,
        choose: Callable[[], tuple[FrameWatcher | None, str, str]],
        kernel: KernelPages | None,
        seconds: float,
        say: Callable[[str], object],
        *,
        watch: Callable[..., list[WatchedPages]] = watch_pages,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choose, self._kernel, self._seconds, self._say = choose, kernel, seconds, say
        self._watch, self._clock = watch, clock
        self._vms: list[VmSampling] = []
        self._thread: threading.Thread | None = None
        self._watcher: FrameWatcher | None = None
        self._problem = ""
        self._look_for_watcher()

    def _look_for_watcher(self) -> None:
        self._look_at = self._clock() + _LOOK_AGAIN_SECONDS
        self._watcher, way, problem = self._choose()
        if self._watcher is not None:
            self._say(f"working sets are sampled, by {way}")
        elif problem != self._problem:
            self._say(f"working sets are unknown: {problem}; all count as active")
        self._problem = problem

    def add(self, vm: LiveVm) -> VmSampling:
        """Watch a VM's samples from now on."""
        sampling = VmSampling(vm)
        self._vms.append(sampling)
        return sampling

    def remove(self, vm: LiveVm) -> None:
        """The VM is not watched any more."""
        self._vms = [sampling for sampling in self._vms if sampling.vm is not vm]

    def begin(self) -> None:
        """Start a round with all samples that were drawn, unless one runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._watcher is None and self._clock() >= self._look_at:
            self._look_for_watcher()
        if self._watcher is None:
            return
        drawn: list[tuple[VmSampling, SampledVm, PpnArray]] = []
        for sampling in self._vms:
            if sampling.drawn is not None:
                pages, sampling.drawn = sampling.drawn, None
                try:
                    drawn.append((sampling, SampledVm(sampling.vm), pages))
                except (LiveError, OSError) as error:
                    sampling.error = str(error)
        if drawn:
            self._thread = threading.Thread(
                target=self._round,
                args=(self._watcher, drawn),
                name="memvirt-sampling",
                daemon=True,
            )
            self._thread.start()

    def _round(
        self, watcher: FrameWatcher, drawn: list[tuple[VmSampling, SampledVm, PpnArray]]
    ) -> None:
        with contextlib.ExitStack() as handles:
            for _, vm, _ in drawn:
                handles.enter_context(vm)
            try:
                results = self._watch(
                    watcher, [(vm, pages) for _, vm, pages in drawn], self._seconds,
                    self._kernel,
                )  # fmt: skip
            except (LiveError, OSError) as error:
                none = np.zeros(0, np.bool_)
                results = [WatchedPages(vm.name, none, none, str(error)) for _, vm, _ in drawn]
        for (sampling, _, pages), seen in zip(drawn, results, strict=True):
            sampling.ended(pages, seen)

    def close(self) -> None:
        """Stop, and leave the kernel as it was; may be called again."""
        if self._watcher is None:
            return
        self._watcher.interrupt()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._watcher.close()


def open_sampler(
    way: WorkingSetWay,
    kernel: KernelPages | None,
    seconds: float,
    say: Callable[[str], object],
    watcher: FrameWatcher | None = None,
) -> Sampler:
    """What samples working sets here, in rounds of ``seconds``; ``say`` gets what it is.

    With ``watcher`` that is used, and not what the host has. Raises LiveError only for a way that
    was asked for by name.
    """
    if watcher is not None:
        return Sampler(lambda: (watcher, "the watcher that was given", ""), kernel, seconds, say)
    return Sampler(lambda: choose_watcher(way), kernel, seconds, say)
