# SPDX-License-Identifier: Apache-2.0
"""What page sharing would save, before it is switched on.

Every resident page of the chosen VMs is hashed once (XXH3-64); pages of equal hash count as equal.
With pages of zeroes aside, the distinct contents of one VM, of a group of VMs and of all together
tell what sharing within a VM, and across VMs, gives. VMs of different *salts* never share (as
Mem.ShareForceSalting has it); KSM knows no salts, it has one pool for the host.

A guest that runs changes its pages while they are hashed, and KSM takes only pages that stayed the
same from one scan to the next: the forecast is of the moment.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.machine.content import hash_pages

from .kernel_pages import KernelPages
from .ksm import DEFAULT_MOST_SHARERS, ksm_status, why_not_merged
from .page_states import RESIDENT_STATES, LivePageState, PageStates
from .vm import LiveVm

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_BATCH_PAGES = 4096


@functools.cache
def zero_hash() -> np.uint64:
    """The hash of a page of zeroes."""
    return np.uint64(hash_pages(np.zeros(PAGE_BYTES, np.uint8), np.zeros(1, np.int64))[0])


@dataclass(frozen=True)
class VmHashes:
    """The content of one VM's resident pages, as hashes."""

    name: str
    salt: str
    hashes: Hashes  # one for each resident page, in any order
    mapped_zero: int  # pages of the host's page of zeroes: they take no frame already
    already_saved: float | None  # frames KSM saves now, charged to this VM; None: unknown
    ksm_obstacles: tuple[str, ...]  # why KSM would not look at (some of) its memory
    mergeable_pages: int  # resident pages that KSM would look at


@dataclass(frozen=True, slots=True)
class VmForecast:
    """What sharing would save in one VM. Quantities are 4 KiB pages."""

    name: str
    salt: str
    resident: int
    zero: int  # resident pages of zeroes
    distinct: int  # different contents, zeroes not counted
    within: int  # saved by sharing within this VM, zeroes not counted
    already_saved: float | None
    ksm_obstacles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairForecast:
    """Contents that two VMs have in common, zeroes not counted: what is saved if the two share."""

    first: str
    second: str
    common: int
    same_salt: bool


@dataclass(frozen=True, slots=True)
class SaltForecast:
    """What sharing saves among the VMs of one salt."""

    salt: str
    vms: tuple[str, ...]
    zero: int
    within: int
    across: int

    @property
    def saved(self) -> int:
        """All frames saved."""
        return self.zero + self.within + self.across


@dataclass(frozen=True, slots=True)
class SharingForecast:
    """The forecast for all chosen VMs, with one pool and with salts."""

    vms: tuple[VmForecast, ...]
    pairs: tuple[PairForecast, ...]
    salts: tuple[SaltForecast, ...]
    resident: int
    zero: int  # saved of pages of zeroes, in one pool
    within: int  # saved within VMs, zeroes not counted
    across: int  # saved across VMs on top of that, in one pool
    ksm_saved: int  # of it, what KSM would save on this host as the VMs were started
    ksm_notes: tuple[str, ...]  # about the host's KSM
    seconds: float  # what the forecast took, waiting included
    cpu_seconds: float

    @property
    def saved(self) -> int:
        """Frames saved by one pool without salts."""
        return self.zero + self.within + self.across

    @property
    def salted_saved(self) -> int:
        """Frames saved if VMs of different salts do not share."""
        return sum(salt.saved for salt in self.salts)


@dataclass
class _Pace:
    """Keeps reading below ``pages_per_second``."""

    pages_per_second: float | None
    started: float = field(default_factory=time.monotonic)
    pages: int = 0

    def wait(self, pages: int) -> None:
        self.pages += pages
        if self.pages_per_second:
            ahead = self.pages / self.pages_per_second - (time.monotonic() - self.started)
            if ahead > 0:
                time.sleep(ahead)


def hash_vm(
    vm: LiveVm,
    kernel: KernelPages | None,
    *,
    salt: str = "",
    pages_per_second: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VmHashes:
    """Hash all resident pages of a VM. ``on_progress`` hears pages done and pages in all.

    Pages without a frame and swapped ones are not touched. Raises ProcessGone, AccessDenied.
    """
    states = vm.page_states(kernel)
    # A page whose sharing is unknown is resident, or of the zero page: reading it changes nothing.
    resident = states.where(*RESIDENT_STATES, LivePageState.UNKNOWN)
    if states.frames_known is False:
        resident = _readable(vm, resident)
    hashes = np.empty(resident.size, np.uint64)
    buffer = np.empty(_BATCH_PAGES * PAGE_BYTES, np.uint8)
    pace = _Pace(pages_per_second)
    for start in range(0, resident.size, _BATCH_PAGES):
        part = resident[start : start + _BATCH_PAGES]
        vm.content.read(part, buffer)
        hashes[start : start + part.size] = hash_pages(buffer, np.arange(part.size))
        if on_progress is not None:
            on_progress(start + part.size, int(resident.size))
        pace.wait(part.size)
    return VmHashes(
        vm.name,
        salt,
        hashes,
        mapped_zero=int(np.count_nonzero(states.state == LivePageState.ZERO)),
        already_saved=states.counts().shared_saved,
        ksm_obstacles=tuple(why for block in vm.layout.blocks if (why := why_not_merged(block))),
        mergeable_pages=_mergeable(vm, states, resident),
    )


def _readable(vm: LiveVm, indices: Any) -> Any:
    """Without root, UNKNOWN may also be said of shared memory that is not there: leave it out."""
    keep = np.ones(indices.size, np.bool_)
    entries = vm.pagemap.of_ram(vm.layout)[indices]
    keep &= (entries >> np.uint64(63)).astype(np.bool_)
    return indices[keep]


def _mergeable(vm: LiveVm, states: PageStates, resident: Any) -> int:
    count = 0
    for block in vm.layout.blocks:
        if block.ksm_can_merge:
            inside = (resident >= block.first_index) & (resident < block.first_index + block.pages)
            count += int(np.count_nonzero(inside))
    return count


def _saved_by_pool(hashes: Sequence[Hashes]) -> tuple[int, int, int]:
    """Frames one pool saves: of zero pages, within VMs, across VMs."""
    zero = sum(int(np.count_nonzero(part == zero_hash())) for part in hashes)
    rest = [part[part != zero_hash()] for part in hashes]
    distinct = [np.unique(part) for part in rest]
    within = sum(part.size - unique.size for part, unique in zip(rest, distinct, strict=True))
    total = sum(unique.size for unique in distinct)
    across = total - (np.unique(np.concatenate(distinct)).size if distinct else 0)
    return max(zero - 1, 0), int(within), int(across)


def _ksm_saved(hashes: Sequence[Hashes], most_sharers: int, use_zero_pages: bool) -> int:
    """What KSM saves of these pages: a frame takes ``most_sharers`` pages, then another begins."""
    if not hashes:
        return 0
    unique, counts = np.unique(np.concatenate(hashes), return_counts=True)
    frames = -(-counts // most_sharers)
    if use_zero_pages:
        frames[unique == zero_hash()] = 0
    return int(np.sum(counts - frames))


def forecast(
    hashed: Sequence[VmHashes], *, seconds: float = 0.0, cpu_seconds: float = 0.0
) -> SharingForecast:
    """The forecast from the VMs' hashes."""
    status = ksm_status()
    zero, within, across = _saved_by_pool([vm.hashes for vm in hashed])
    distinct = {vm.name: np.unique(vm.hashes[vm.hashes != zero_hash()]) for vm in hashed}
    by_salt: dict[str, list[VmHashes]] = {}
    for vm in hashed:
        by_salt.setdefault(vm.salt, []).append(vm)
    # A VM whose memory KSM may look at in part only is rare; its pages cannot be told apart here.
    for_ksm = [vm.hashes for vm in hashed if vm.mergeable_pages == vm.hashes.size]
    return SharingForecast(
        vms=tuple(_vm_forecast(vm, distinct[vm.name]) for vm in hashed),
        pairs=tuple(
            PairForecast(
                a.name,
                b.name,
                int(np.intersect1d(distinct[a.name], distinct[b.name], assume_unique=True).size),
                a.salt == b.salt,
            )
            for a, b in itertools.combinations(hashed, 2)
        ),
        salts=tuple(
            SaltForecast(
                salt, tuple(vm.name for vm in group), *_saved_by_pool([vm.hashes for vm in group])
            )
            for salt, group in by_salt.items()
        ),
        resident=sum(int(vm.hashes.size) for vm in hashed),
        zero=zero,
        within=within,
        across=across,
        ksm_saved=_ksm_saved(
            for_ksm,
            status.most_sharers if status else DEFAULT_MOST_SHARERS,
            bool(status and status.use_zero_pages),
        ),
        ksm_notes=_ksm_notes(),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def _vm_forecast(vm: VmHashes, distinct: Hashes) -> VmForecast:
    zero = int(np.count_nonzero(vm.hashes == zero_hash()))
    resident = int(vm.hashes.size)
    return VmForecast(
        vm.name, vm.salt, resident, zero, int(distinct.size),
        resident - zero - int(distinct.size), vm.already_saved, vm.ksm_obstacles,
    )  # fmt: skip


def _ksm_notes() -> tuple[str, ...]:
    status = ksm_status()
    if status is None:
        return ("this kernel has no KSM (CONFIG_KSM)",)
    notes = []
    if not status.running:
        notes.append("KSM is off on this host (/sys/kernel/mm/ksm/run)")
    notes.append("KSM knows no salts: it shares across all VMs it may look at")
    return tuple(notes)


def forecast_sharing(
    vms: Sequence[LiveVm],
    kernel: KernelPages | None,
    *,
    salts: Mapping[str, str] | None = None,
    pages_per_second: float | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> SharingForecast:
    """Hash all pages of ``vms`` and forecast. ``salts`` names each VM's; without, all have one.

    ``on_progress`` hears the VM's name, its pages done and its pages in all.
    """
    started, spent = time.monotonic(), time.process_time()
    hashed = []
    for vm in vms:

        def tell(done: int, total: int, name: str = vm.name) -> None:
            if on_progress is not None:
                on_progress(name, done, total)

        salt = (salts or {}).get(vm.name, "")
        hashed.append(
            hash_vm(vm, kernel, salt=salt, pages_per_second=pages_per_second, on_progress=tell)
        )
    return forecast(
        hashed,
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - spent,
    )
