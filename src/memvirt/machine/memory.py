# SPDX-License-Identifier: Apache-2.0
"""Machine memory: the host's frames, who owns them, and how many mappings each has.

Metadata is arrays over MPN, 9 bytes a frame: its kind (1), who holds it (4) and a detail (4), which
also links the free frames. So 1 TiB of frames can be represented; content is one buffer, reserved
lazily by the operating system, in its huge pages where it has them. A frame is zeroed when
allocated: no VM ever sees another's bytes.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, PAGE_SHIFT, MachinePageNumber, MpnArray
from memvirt.errors import MemvirtError
from memvirt.share_table import ShareTable
from memvirt.size import format_size

from .content import Hashes
from .equal_frames import find_equal_frames
from .frame_arrays import note_taken, zero_frames
from .free_list import FreeList
from .kinds import NOBODY, FrameKind
from .references import add_references, drop_references, free_unreferenced

__all__ = [
    "NOBODY",
    "FrameKind",
    "MachineMemory",
    "MachineMemoryExhausted",
    "MachineMemoryStatistics",
]

MpnsLike = Sequence[MachinePageNumber] | MpnArray | MachinePageNumber
FrameDetails = np.ndarray[tuple[int], np.dtype[np.int32]]
SCATTER_FRAMES = 65_536  # 256 MiB: frames are scattered within runs of so many


class MachineMemoryExhausted(MemvirtError):
    """No free frames for a request: reclaim, or refuse the request.

    ``wanted`` and ``free`` are numbers of frames; nothing was allocated.
    """

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"machine memory exhausted: {wanted} frames wanted, {free} free")
        self.wanted = wanted
        self.free = free


@dataclass(frozen=True, slots=True)
class MachineMemoryStatistics:
    """Numbers of frames by use, and what was allocated and freed since power-on."""

    frames: int
    free: int
    guest: int
    shared: int
    shadow: int
    nested: int
    reserve: int
    vmkernel: int
    compressed: int
    allocations: int
    frees: int


class FrameReferences:
    """By MPN: how many mappings a frame has. Read by index; only SHARED frames can have several.

    It has no memory of its own: a free frame has none, a frame of one use has one, and of SHARED
    frames the word that says who holds them has the number (``MachineMemory.owner``).
    """

    def __init__(self, kind: Any, owner: Any) -> None:
        self._kind = kind
        self._owner = owner
        self.changes = 0  # times that numbers of references of SHARED frames have changed

    def __getitem__(self, mpns: Any) -> Any:
        kind = self._kind[mpns]
        single = (kind != FrameKind.FREE) * 1
        return np.where(kind == FrameKind.SHARED, NOBODY - self._owner[mpns], single)

    def __setitem__(self, mpns: Any, references: Any) -> None:
        """Of SHARED frames: that is the caller's promise."""
        self._owner[mpns] = NOBODY - np.asarray(references, np.int32)
        self.changes += 1


def _reserve(size: int) -> mmap.mmap:
    """``size`` bytes of zeroes of the host's memory, which takes them up as they are touched.

    Asked for in huge pages, as QEMU asks for its guests' memory: without them most accesses to a
    frame cost the host's processor a miss in its own TLB. A kernel without them refuses, and gives
    small ones.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _order_of_allocation(frames: int, scatter_seed: int | None) -> MpnArray:
    """All MPNs, the first to be taken last: ascending, or scattered within ``SCATTER_FRAMES``."""
    order = MpnArray(np.arange(frames - 1, -1, -1, dtype=np.uint32))
    if scatter_seed is not None:
        rng = np.random.default_rng(scatter_seed)
        for end in range(frames, 0, -SCATTER_FRAMES):
            rng.shuffle(order[max(end - SCATTER_FRAMES, 0) : end])
    return order


class MachineMemory:
    """``frames`` frames of 4 KiB.

    ``scatter_seed`` makes the order of allocation pseudo-random, so that what lies behind a VM is
    visibly not contiguous; without it frames are handed out in ascending order. It is random within
    256 MiB, not beyond, for the host gives memory in huge pages: a machine of which little is used
    would else soon take all of its size from the host.
    With ``metadata_only`` no content is kept (policy studies of huge hosts).
    All methods may be called from several threads.
    """

    def __init__(
        self, frames: int, *, scatter_seed: int | None = None, metadata_only: bool = False
    ) -> None:
        if not 0 < frames < 1 << 32:
            raise ValueError(f"frames must be between 1 and 2**32 - 1, not {frames}")
        self.frames = frames
        self.kind = np.zeros(frames, np.uint8)
        # The VM a frame belongs to; negative: none, of a SHARED frame -1 - its references.
        self.owner = np.full(frames, NOBODY, np.int32)
        self.references = FrameReferences(self.kind, self.owner)
        self._detail = np.zeros(frames, np.int32)  # by kind: guest_ppn, share_salt, ...
        self._lock = threading.RLock()
        self._mapping = _reserve(PAGE_BYTES if metadata_only else frames * PAGE_BYTES)
        self._metadata_only = metadata_only
        self.content = np.frombuffer(self._mapping, np.uint8)
        self._host_address = int(self.content.ctypes.data)
        order = _order_of_allocation(frames, scatter_seed)
        self._free = FreeList(self._detail.view(np.uint32), order)
        self._allocations = 0
        self._frees = 0

    def __repr__(self) -> str:
        size, free = format_size(self.bytes), format_size(self.free_frames << PAGE_SHIFT)
        return f"<{type(self).__name__}: {size} in {self.frames} frames, {free} free>"

    @property
    def free_frames(self) -> int:
        """Frames that can be allocated now."""
        return self._free.count

    @property
    def bytes(self) -> int:
        """Size of all frames, in bytes."""
        return self.frames << PAGE_SHIFT

    @property
    def host_address(self) -> int:
        """Host address of frame 0, valid as long as this object."""
        return self._host_address

    def free_list(self) -> MpnArray:
        """MPNs of the free frames, in the order in which they will be allocated."""
        return self._free.mpns()

    # One word a frame, whose meaning depends on its kind: each meaning has a name. ----------------

    @property
    def guest_ppn(self) -> FrameDetails:
        """By MPN: the PPN that a GUEST frame backs. Negative for a SHARED frame, so that compiled
        code tells the two apart by one load."""
        return self._detail

    @property
    def shadow_index(self) -> FrameDetails:
        """By MPN: the index, in its VMM, of the shadow page in a SHADOW frame."""
        return self._detail

    @property
    def table_level(self) -> FrameDetails:
        """By MPN: the level of the nested table in a NESTED frame."""
        return self._detail

    @property
    def block_bytes(self) -> FrameDetails:
        """By MPN: bytes of a block of compressed content in a COMPRESSED frame."""
        return self._detail

    def share_salt(self, mpns: MpnsLike) -> Any:
        """The salt of SHARED frames: only VMs of that salt use them."""
        return -1 - self._detail[mpns]

    def set_share_salt(self, mpns: MpnsLike, salt: int) -> None:
        """Let SHARED frames be used by VMs of ``salt`` (0 or more) only."""
        self._detail[mpns] = -1 - salt

    def find_equal(
        self, mpns: MpnsLike, table: ShareTable, salt: int
    ) -> tuple[Hashes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Hash frames and find, for each, the frame in ``table`` that it equals in full.

        Returns the hashes (``content.hash_pages``), and the MPN of a SHARED frame of ``salt`` for
        each, or -1. Each frame is compared right after it was hashed: it is in the cache then.
        Raises IndexError for an MPN that is no frame's, and in machine memory without content.
        """
        frames = self._listed(mpns)
        if self._metadata_only:
            raise IndexError("frames of this machine memory have no content")
        hashes, found = np.empty(frames.size, np.uint64), np.empty(frames.size, np.int64)
        find_equal_frames(
            self._host_address, frames, *table.frame_arrays,
            self.kind, self._detail, -1 - salt, hashes, found,
        )  # fmt: skip
        return hashes, found

    # ----------------------------------------------------------------------------------------------

    def page(self, mpn: MachinePageNumber) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """A view of the 4096 bytes of frame ``mpn``, uint8, shape (4096,).

        Raises IndexError if there is no such frame, or if this machine has metadata only.
        """
        if not 0 <= mpn < self.frames or self._metadata_only:
            raise IndexError(f"no content at MPN {mpn:#x}: this machine has {self.frames} frames")
        return self.content[mpn << PAGE_SHIFT : (mpn + 1) << PAGE_SHIFT]

    def allocate(
        self, count: int = 1, *, kind: FrameKind, owner: int = NOBODY, detail: int = 0
    ) -> MpnArray:
        """Take ``count`` free frames, zeroed, each with one reference; all or none.

        ``detail`` is the number that frames of this kind keep (for SHARED use ``set_share_salt``).
        Raises MachineMemoryExhausted if fewer are free.
        """
        with self._lock:
            if count > self._free.count:
                raise MachineMemoryExhausted(count, self._free.count)
            taken = self._free.take(count)
            self._take(taken, kind, owner, detail)
            return taken

    def allocate_run(
        self, order: int, *, kind: FrameKind, owner: int = NOBODY, detail: int = 0
    ) -> MachinePageNumber:
        """Take an aligned run of ``2**order`` contiguous frames; return its first MPN.

        Raises MachineMemoryExhausted if no such run is free.
        """
        size = 1 << order
        return self.allocate_contiguous(size, align=size, kind=kind, owner=owner, detail=detail)

    def allocate_contiguous(
        self, count: int, *, align: int = 1, kind: FrameKind, owner: int = NOBODY, detail: int = 0
    ) -> MachinePageNumber:
        """Take ``count`` contiguous frames, the first MPN a multiple of ``align``; return it.

        Raises MachineMemoryExhausted if there is no such run of free frames.
        """
        with self._lock:
            busy = np.concatenate(([0], np.cumsum(self.kind != FrameKind.FREE)))
            starts = np.arange(0, self.frames - count + 1, align)
            whole = starts[busy[starts + count] == busy[starts]]
            if whole.size == 0:
                raise MachineMemoryExhausted(count, self._free.count)
            first = int(whole[0])
            taken = MpnArray(np.arange(first, first + count, dtype=np.uint32))
            self._free.remove(taken)
            self._take(taken, kind, owner, detail)
            return MachinePageNumber(first)

    def _take(self, mpns: MpnArray, kind: FrameKind, owner: int, detail: int) -> None:
        # One reference: of a SHARED frame that is in the word for its owner.
        holder = NOBODY - 1 if kind is FrameKind.SHARED else owner
        note_taken(mpns, self.kind, self.owner, self._detail, int(kind), holder, detail)
        self._allocations += mpns.size
        if not self._metadata_only:
            zero_frames(self._host_address, mpns)

    def add_references(self, mpns: MpnsLike) -> None:
        """One more mapping of a SHARED frame for each time it is listed.

        Raises ValueError, with nothing changed, if one is free or of another kind, IndexError
        for an MPN that is no frame's.
        """
        frames = self._listed(mpns)
        with self._lock:
            wrong = add_references(frames, self.kind, self.owner)
            if wrong >= 0:
                mpn = int(frames[wrong])
                kind = FrameKind(int(self.kind[mpn])).name
                raise ValueError(f"MPN {mpn:#x} is {kind}: it cannot gain a reference")
            self.references.changes += 1

    def _listed(self, mpns: MpnsLike) -> MpnArray:
        """MPNs for compiled code. Raises IndexError for one that is no frame's."""
        frames = np.ascontiguousarray(np.atleast_1d(np.asarray(mpns, np.uint32)))
        if frames.size and frames.max() >= self.frames:
            raise IndexError(f"MPN {frames.max():#x}: this machine has {self.frames} frames")
        return MpnArray(frames)

    def release(self, mpns: MpnsLike) -> int:
        """Drop one reference of a frame each time it is listed; those without any become free.

        Returns how many did; the last listed is the first to be allocated again. Raises
        ValueError, with nothing changed, for more references than there are, IndexError for an MPN
        that is no frame's. Obligation: the caller has dropped every translation of these frames,
        and translated code made from them, before this call.
        """
        frames = self._listed(mpns)
        arrays = self.kind, self.owner
        with self._lock:
            wrong = drop_references(frames, *arrays)
            if wrong >= 0:
                raise ValueError(f"MPN {int(frames[wrong]):#x} is free already")
            first, freed = free_unreferenced(frames, *arrays, self._free.links, self._free.first)
            self._free.pushed(first, freed)
            self._frees += freed
            if freed < frames.size:
                self.references.changes += 1
            return freed

    def owned_by(self, owner: int) -> MpnArray:
        """MPNs of the frames that belong to VM ``owner``."""
        return MpnArray(np.flatnonzero(self.owner == owner).astype(np.uint32))

    def statistics(self) -> MachineMemoryStatistics:
        """Frames by use, at one moment."""
        with self._lock:
            counts: Any = np.bincount(self.kind, minlength=len(FrameKind))
            return MachineMemoryStatistics(
                frames=self.frames,
                **{kind.name.lower(): int(counts[kind]) for kind in FrameKind},
                allocations=self._allocations,
                frees=self._frees,
            )
