# SPDX-License-Identifier: Apache-2.0
"""The compression cache of one VM: pages that were to be swapped, kept in machine memory instead.

As ESXi: only swap candidates are compressed; a page that shrinks to a quarter is kept in a block of
1 KiB, one that shrinks to a half in a block of 2 KiB, others are refused. The cache grows from
nothing to a part of the VM's memory; when it is full the page kept longest must leave for swap
first. Blocks lie in frames of machine memory that count as the VM's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import lz4.block
import numpy as np
import zstandard

from memvirt.address import PAGE_BYTES, MachinePageNumber, PhysicalPageNumber, PpnArray
from memvirt.machine.content import Pages, hash_pages
from memvirt.machine.memory import FrameKind, MachineMemory, MachineMemoryExhausted
from memvirt.names import choose

from .backing import FULL, REFUSED, PageCorrupted, Slots

BLOCK_SIZES = (PAGE_BYTES // 4, PAGE_BYTES // 2)


class Codec(StrEnum):
    """What compresses pages."""

    LZ4 = "lz4"
    ZSTD = "zstd"


class _Lz4:
    def compress(self, page: bytes) -> bytes:
        return bytes(lz4.block.compress(page, store_size=False))

    def decompress(self, packed: bytes) -> bytes:
        return bytes(lz4.block.decompress(packed, uncompressed_size=PAGE_BYTES))


class _Zstd:
    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=1, write_checksum=False, write_content_size=False
        )
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, page: bytes) -> bytes:
        return self._compressor.compress(page)

    def decompress(self, packed: bytes) -> bytes:
        return self._decompressor.decompress(packed, max_output_size=PAGE_BYTES)


_CODECS: dict[str, Callable[[], _Lz4 | _Zstd]] = {Codec.LZ4: _Lz4, Codec.ZSTD: _Zstd}


@dataclass(frozen=True, slots=True)
class _Kept:
    ppn: PhysicalPageNumber
    mpn: MachinePageNumber
    block: int  # number of the block in its frame
    size: int  # of the block
    length: int  # of the compressed page in it
    checksum: int


class CompressionCache:
    """At most ``max_frames`` frames of ``machine`` for VM ``vm_id``.

    ``wait_ns`` is the virtual time a guest waits for a page. Not thread-safe: a running VM may
    take its own pages; everything else happens while it is stopped.
    """

    def __init__(
        self,
        machine: MachineMemory,
        vm_id: int,
        max_frames: int,
        *,
        codec: Codec = Codec.LZ4,
        wait_ns: int = 0,
    ) -> None:
        self.max_frames = max_frames
        self.wait_ns = wait_ns
        self._machine = machine
        self._vm_id = vm_id
        self._codec = choose(_CODECS, codec, what="codec")()
        self._kept: dict[int, _Kept] = {}  # in the order they came
        self._next_slot = 0
        self._free_slots: list[int] = []
        # Frames by block size with the numbers of their free blocks.
        self._free: dict[int, dict[MachinePageNumber, list[int]]] = {
            size: {} for size in BLOCK_SIZES
        }
        self._frames = 0
        self._emptied: list[MachinePageNumber] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def frames(self) -> int:
        """Frames the cache takes now, those about to be given back included."""
        return self._frames

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        """Keep pages that shrink enough: a slot each, REFUSED, or FULL."""
        slots = np.full(ppns.size, REFUSED, np.int64)
        checksums = hash_pages(contents, np.arange(ppns.size)).tolist()
        for i, ppn in enumerate(ppns.tolist()):
            packed = self._codec.compress(contents[i].tobytes())
            if len(packed) <= BLOCK_SIZES[-1]:
                slots[i] = self._keep(ppn, packed, checksums[i])
        return slots

    def _keep(self, ppn: PhysicalPageNumber, packed: bytes, checksum: int) -> int:
        size = next(size for size in BLOCK_SIZES if len(packed) <= size)
        partial = self._free[size]
        if not partial and not self._grow(size):
            return FULL
        mpn, blocks = next(iter(partial.items()))
        block = blocks.pop()
        if not blocks:
            del partial[mpn]
        page = self._machine.page(mpn)
        page[block * size : block * size + len(packed)] = np.frombuffer(packed, np.uint8)
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._kept[slot] = _Kept(ppn, mpn, block, size, len(packed), checksum)
        return slot

    def _grow(self, size: int) -> bool:
        if self._frames >= self.max_frames:
            return False
        try:
            frame = self._machine.allocate(
                kind=FrameKind.COMPRESSED, owner=self._vm_id, detail=size
            )
        except MachineMemoryExhausted:
            return False
        self._frames += 1
        self._free[size][MachinePageNumber(int(frame[0]))] = list(range(PAGE_BYTES // size))
        return True

    def oldest(self, count: int) -> list[tuple[PhysicalPageNumber, int]]:
        """(PPN, slot) of the pages whose leaving makes room for ``count`` pages, oldest first.

        A frame is of use only when all its blocks are free, so whole frames are emptied: those of
        the pages kept longest.
        """
        wanted_frames: dict[int, None] = {}
        blocks = 0
        for kept in self._kept.values():
            if blocks >= count:
                break
            if kept.mpn not in wanted_frames:
                wanted_frames[kept.mpn] = None
                blocks += PAGE_BYTES // BLOCK_SIZES[-1]
        return [(kept.ppn, slot) for slot, kept in self._kept.items() if kept.mpn in wanted_frames]

    def read(self, slot: int) -> bytes:
        """The page in ``slot``. Raises PageCorrupted if it is not what was kept."""
        kept = self._kept[slot]
        start = kept.block * kept.size
        packed = self._machine.page(kept.mpn)[start : start + kept.length].tobytes()
        try:
            content = self._codec.decompress(packed)
        except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
            raise PageCorrupted(f"compressed page of PPN {kept.ppn:#x}: {error}") from error
        row = np.frombuffer(content, np.uint8).reshape(1, -1)
        if len(content) != PAGE_BYTES or int(hash_pages(row, np.zeros(1))[0]) != kept.checksum:
            raise PageCorrupted(f"compressed page of PPN {kept.ppn:#x} is not what was kept")
        return content

    def take(self, slot: int) -> bytes:
        content = self.read(slot)
        self.discard([slot])
        return content

    def discard(self, slots: Iterable[int]) -> None:
        for slot in slots:
            kept = self._kept.pop(slot)
            self._free_slots.append(slot)
            partial = self._free[kept.size]
            blocks = partial.setdefault(kept.mpn, [])
            blocks.append(kept.block)
            if len(blocks) == PAGE_BYTES // kept.size:
                del partial[kept.mpn]
                self._emptied.append(kept.mpn)

    def slots_in_use(self) -> Slots:
        """Slots that hold a page."""
        return np.fromiter(self._kept, np.int64, len(self._kept))

    def settle(self) -> None:
        """Give empty frames back. Called with every processor stopped."""
        if self._emptied:
            self._machine.release(self._emptied)
            self._frames -= len(self._emptied)
            self._emptied = []
