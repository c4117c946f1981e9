# SPDX-License-Identifier: Apache-2.0
"""The one protocol through which the VMkernel sees and manages a VM's memory.

Policies know nothing else of a VM, so that they do not change with what runs it. The VMM of the
software processor implements it (``vmm.monitor`` behind ``vmkernel.vmm_memory``), and so does the
simulation that policy studies of thousands of VMs use. Every method is called only while the VM's
processor is stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from memvirt.machine.content import Hashes
from memvirt.machine.memory import FrameKind
from memvirt.vmm.eviction import Eviction

Ppns = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class GuestUsage:
    """Pages of one VM by state, and frames it takes beside them."""

    private: int
    shared: int
    shared_cost: float  # a page shared by n counts 1/n
    unmapped: int
    compressed: int
    swapped: int
    compressed_frames: int
    table_frames: int
    reserve_frames: int
    large: int  # private pages in large pages
    zips_total: int
    unzips_total: int
    swap_reads_total: int
    swap_writes_total: int

    @property
    def granted(self) -> int:
        """Guest pages that have a frame."""
        return self.private + self.shared

    @property
    def consumed(self) -> float:
        """Machine memory charged to the VM, in frames; page tables are overhead, not this."""
        return self.private + self.shared_cost + self.compressed_frames

    @property
    def in_use(self) -> int:
        """Guest pages with content, wherever it is kept."""
        return self.granted + self.compressed + self.swapped


class Balloon(Protocol):
    """The balloon device of a VM, as the VMkernel uses it."""

    target: int  # pages it should hold

    @property
    def size(self) -> int:
        """Pages the guest has given up."""
        ...

    @property
    def connected(self) -> bool:
        """True if a driver in the guest has greeted the device."""
        ...


class MachineFrames(Protocol):
    """What the VMkernel has to know of machine memory."""

    frames: int

    @property
    def free_frames(self) -> int: ...

    def allocate(self, count: int, *, kind: FrameKind) -> Any:
        """Take free frames; what is returned is given to ``release``."""
        ...

    def release(self, mpns: Any) -> int: ...


class GuestMemory(Protocol):
    """A VM's memory."""

    @property
    def vm_id(self) -> int: ...

    @property
    def share_salt(self) -> int:
        """VMs of one salt may share pages."""
        ...

    @property
    def pages(self) -> int:
        """Guest-physical pages."""
        ...

    @property
    def balloon(self) -> Balloon | None: ...

    def usage(self) -> GuestUsage: ...

    # Working set

    def begin_sample(self, ppns: Ppns) -> None:
        """Notice the next access to each of these pages."""
        ...

    def untouched(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of these have been sampled and not accessed since."""
        ...

    def watch(self, ppns: Ppns) -> None:
        """Notice the next access to each of these pages, apart from sampling."""
        ...

    def idle(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of these have been watched and not accessed since."""
        ...

    # Sharing

    def private(self, ppns: Ppns) -> Ppns:
        """Those of ``ppns`` that are private now."""
        ...

    def hash_pages(self, ppns: Ppns) -> Hashes:
        """A 64-bit hash of the content of each page, all of them resident."""
        ...

    def make_shared(self, ppn: int) -> int:
        """Make a private page's frame shareable; returns its MPN."""
        ...

    def may_share(self, mpns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of ``mpns`` are shared frames this VM may use."""
        ...

    def share(self, ppns: Ppns, mpns: Ppns) -> Ppns:
        """Use the frame beside it for each of ``ppns`` that equals it in full; returns which."""
        ...

    def mapped_to(self, mpns: list[int]) -> int:
        """Number of pages mapped to these shared frames."""
        ...

    # Large pages

    def in_large_page(self, ppns: Ppns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of ``ppns`` are part of a large page, which sharing or swapping them breaks."""
        ...

    def make_large(self, most: int) -> int:
        """Back up to ``most`` runs of private pages by large pages.

        Returns how many, or -1 if machine memory has no run of frames for even one.
        """
        ...

    def break_large(self, most: int) -> int:
        """Break up to ``most`` large pages; returns how many."""
        ...

    # Reclaiming

    def reclaimable_pages(self) -> Ppns:
        """PPNs whose unmapping frees a frame: private ones, and those shared with nobody now."""
        ...

    def shared_pages(self) -> Ppns:
        """PPNs of all shared pages."""
        ...

    def unmap(self, ppns: Ppns) -> Eviction:
        """Take the frames of these pages; their content is compressed or swapped."""
        ...

    def settle(self) -> None:
        """Release what the VM gave up while it ran, and collect its swap writes."""
        ...

    def submit_writes(self) -> None:
        """Begin to write what waits for the swap file."""
        ...

    @property
    def trouble(self) -> str:
        """Why pages cannot be swapped just now, or empty."""
        ...

    # Frames

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
