# SPDX-License-Identifier: Apache-2.0
"""What the VMkernel knows of a VM and of the host: protocols, and the records they exchange.

Policies know nothing else of a VM, so that they do not change with what runs it. Every VM answers
``GuestMemory``. What only some VMs have is a smaller protocol behind an attribute that is None
where there is no such thing; a policy asks, and does with less:

==============  ================================================================================
``balloon``     a balloon driver's device, which can be given a target
``sampling``    accesses to single pages can be noticed
``reclaim``     pages can be taken from the VM, and put back
``sharing``     equal pages can become one frame
``frames``      the VM runs on frames that are granted to it
``large_pages`` memory can be backed by large pages
==============  ================================================================================

The VMM of the software processor has all of them (``host.vmm_memory``), the simulation all but
large pages. A VM whose memory another kernel manages (QEMU's) has no frames to hand out: it answers
``GuestMemory`` with a balloon, sampling and reclaim, as far as its kernel has levers for them.

Every method is called only at a quiescent point, with the VM's processor stopped. PPNs come and go
as int64 arrays of one dimension; a result "which of ``ppns``" is a boolean array of that length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from memvirt.address import MachinePageNumber, MpnArray, PpnArray
from memvirt.share_table import ShareTable

__all__ = [
    "ActivitySampling",
    "Balloon",
    "Eviction",
    "FrameGrants",
    "FramePool",
    "FrameSharing",
    "GuestMemory",
    "KeptPages",
    "LargePages",
    "MachineFrames",
    "MemoryUsage",
    "PageReclaim",
    "Place",
]

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class KeptPages:
    """Pages of one VM that are kept in one place without a frame of their own."""

    pages: int = 0
    frames: int = 0  # of machine memory that keeping them takes
    put_total: int = 0  # pages put there since power-on
    taken_total: int = 0  # pages the guest got back from there


_NOTHING = KeptPages()


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Pages of one VM by state, and frames it takes beside them."""

    private: int
    shared: int = 0
    shared_cost: float = 0.0  # a page shared by n counts 1/n
    unmapped: int = 0
    kept: Mapping[str, KeptPages] = field(default_factory=dict)  # by place: "compress", "swap"
    table_frames: int = 0
    reserve_frames: int = 0
    large: int = 0  # private pages in large pages

    def kept_in(self, place: str) -> KeptPages:
        """What is kept in ``place``; nothing if the VM has no such place."""
        return self.kept.get(place, _NOTHING)

    @property
    def granted(self) -> int:
        """Guest pages that have a frame."""
        return self.private + self.shared

    @property
    def kept_frames(self) -> int:
        """Frames that keeping pages elsewhere takes."""
        frames = 0
        for kept in self.kept.values():  # read several times a round for every VM: no generator
            frames += kept.frames
        return frames

    @property
    def consumed(self) -> float:
        """Machine memory charged to the VM, in frames; page tables are overhead, not this."""
        return self.private + self.shared_cost + self.kept_frames

    @property
    def in_use(self) -> int:
        """Guest pages with content, wherever it is kept."""
        pages = self.private + self.shared
        for kept in self.kept.values():
            pages += kept.pages
        return pages


@dataclass(frozen=True, slots=True)
class Place:
    """Where the content of evicted pages may go. Pages try places in order; the first keeps them.

    ``spills``: when it is full, the pages kept longest move on to the places behind it. ``drops``:
    content is not kept; only for pages whose content is known, such as zeroes. ``note`` is added
    to the reason of its events.
    """

    name: str
    spills: bool = False
    drops: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Eviction:
    """Where evicted pages went: pages by name of the place, with those that spilled over into it.

    ``refused`` pages were taken nowhere: they are resident as before.
    """

    placed: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0


class Balloon(Protocol):
    """The balloon device of a VM."""

    target: int  # pages it should hold

    @property
    def size(self) -> int:
        """Pages the guest has given up."""
        ...

    @property
    def connected(self) -> bool:
        """True if a driver in the guest has greeted the device."""
        ...


class ActivitySampling(Protocol):
    """Which pages a VM touches."""

    def begin_sample(self, ppns: PpnArray) -> None:
        """Notice the next access to each of these pages."""
        ...

    def untouched(self, ppns: PpnArray) -> Flags | None:
        """Which of ``ppns`` have been sampled and not accessed since.

        None while that is not known: what could not be measured is not idle.
        """
        ...

    def watch(self, ppns: PpnArray) -> None:
        """Notice the next access to each of these pages, apart from sampling."""
        ...

    def idle(self, ppns: PpnArray) -> Flags:
        """Which of ``ppns`` have been watched and not accessed since."""
        ...


class PageReclaim(Protocol):
    """Taking pages from a VM without asking the guest, and putting them back."""

    def reclaimable_pages(self) -> PpnArray:
        """PPNs whose eviction frees a whole frame."""
        ...

    def reclaimable(self, ppns: PpnArray) -> Flags:
        """Which of ``ppns`` are among ``reclaimable_pages``, without looking at others."""
        ...

    def shared_pages(self) -> PpnArray:
        """PPNs of all pages that share a frame."""
        ...

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        """Take the frames of ``ppns``. Places this VM does not have are passed by."""
        ...

    def restore(self, most: int) -> int:
        """Bring up to ``most`` evicted pages back before the guest asks; returns how many."""
        ...

    def submit_writes(self) -> None:
        """Begin to write what waits to be written."""
        ...


class FrameSharing(Protocol):
    """Sharing of frames among pages of equal content, copy-on-write."""

    @property
    def share_salt(self) -> int:
        """VMs of one salt may share pages."""
        ...

    @property
    def zero_hash(self) -> int:
        """What ``hash_pages`` gives for a page of zeroes."""
        ...

    def private(self, ppns: PpnArray) -> PpnArray:
        """Those of ``ppns`` that are private now."""
        ...

    def hash_pages(self, ppns: PpnArray) -> Hashes:
        """A 64-bit hash of the content of each page, all of them resident.

        Writes to those that are private are noticed from now on (``unwritten``).
        """
        ...

    def share_known(self, ppns: PpnArray, table: ShareTable) -> tuple[Hashes, Flags]:
        """As ``hash_pages`` for private pages (distinct), which also use frames of ``table``.

        Returns the hashes, and which of ``ppns`` now use the frame that ``table`` has for their
        hash, having been compared in full. Any of them may be left alone: the caller shares those.
        """
        ...

    def unwritten(self, ppns: PpnArray) -> Flags:
        """Which of ``ppns`` are private and known to be as they were when last hashed."""
        ...

    def make_shared(self, ppns: PpnArray) -> MpnArray:
        """Make the frames of private pages (distinct) shareable; returns their MPNs."""
        ...

    def may_share(self, mpns: MpnArray) -> Flags:
        """Which of ``mpns`` are shared frames this VM may use."""
        ...

    def share(self, ppns: PpnArray, mpns: MpnArray) -> PpnArray:
        """Use the frame beside it for each of ``ppns`` that equals it in full; returns which."""
        ...

    def mapped_to(self, mpns: Sequence[MachinePageNumber]) -> int:
        """Number of pages mapped to these shared frames."""
        ...


class FrameGrants(Protocol):
    """Frames that a VM may use until the next quiescent point."""

    @property
    def reserve(self) -> int:
        """Frames granted and not used yet."""
        ...

    def grant(self, frames: int) -> int:
        """Grant frames; returns how many could be used."""
        ...

    def give_back(self, keep: int) -> int:
        """Take all but ``keep`` of the unused frames back; returns how many."""
        ...


class LargePages(Protocol):
    """Backing by large pages."""

    @property
    def pages_each(self) -> int:
        """Pages of 4 KiB in a large page."""
        ...

    def in_large_page(self, ppns: PpnArray) -> Flags:
        """Which of ``ppns`` are part of a large page, which sharing or evicting them breaks."""
        ...

    def make_large(self, most: int) -> int:
        """Back up to ``most`` runs of private pages by large pages.

        Returns how many, or -1 if machine memory has no run of frames for even one.
        """
        ...

    def break_large(self, most: int) -> int:
        """Break up to ``most`` large pages; returns how many."""
        ...


class GuestMemory(Protocol):
    """A VM's memory: what any VM answers, and what this one can do (see above)."""

    @property
    def vm_id(self) -> int:
        """Number of the VM on its host; it owns frames by it."""
        ...

    @property
    def pages(self) -> int:
        """Guest-physical pages: PPNs are below."""
        ...

    @property
    def granule(self) -> int:
        """Pages of 4 KiB that one PPN stands for: 1, but in simulations of large hosts.

        PPNs and their flags are by granule; every number of pages or frames counts pages.
        """
        ...

    def usage(self) -> MemoryUsage:
        """Pages by state now."""
        ...

    def settle(self) -> None:
        """Bring everything up to date after the VM has run: what it gave up is free now."""
        ...

    @property
    def trouble(self) -> str:
        """Why pages cannot be evicted or brought back just now, or empty."""
        ...

    @property
    def balloon(self) -> Balloon | None:
        """Its balloon device."""
        ...

    @property
    def sampling(self) -> ActivitySampling | None:
        """How accesses to its pages are noticed."""
        ...

    @property
    def reclaim(self) -> PageReclaim | None:
        """How pages are taken from it, and put back."""
        ...

    @property
    def sharing(self) -> FrameSharing | None:
        """How its pages share frames."""
        ...

    @property
    def frames(self) -> FrameGrants | None:
        """The frames granted to it."""
        ...

    @property
    def large_pages(self) -> LargePages | None:
        """Its backing by large pages."""
        ...


class FramePool(Protocol):
    """Frames of the host that can be taken out of use."""

    def withdraw(self, count: int) -> object:
        """Take ``count`` free frames; what is returned is given to ``put_back``."""
        ...

    def put_back(self, withdrawn: object) -> None:
        """Free again what ``withdraw`` took; once."""
        ...


class MachineFrames(Protocol):
    """What the VMkernel has to know of machine memory."""

    @property
    def frames(self) -> int:
        """Frames of 4 KiB in all."""
        ...

    @property
    def free_frames(self) -> int:
        """Those that nobody has."""
        ...

    @property
    def pool(self) -> FramePool | None:
        """None on a host whose free memory another kernel manages."""
        ...
