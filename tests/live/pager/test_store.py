# SPDX-License-Identifier: Apache-2.0
"""The store of evicted pages, by itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memvirt.live.pager.blocks import (
    NO_COPY,
    BlockReader,
    Codec,
    Kind,
    PageDamaged,
    block_path,
    entry_of,
    kind_of,
    slot_of,
)
from memvirt.live.pager.sharing_table import SharingTable
from memvirt.live.pager.store import Entries, PageStore, StoreError, StoreFull

PAGE = 4096


def page_of(seed: int, compressible: int = 0) -> bytes:
    """A page whose last ``compressible`` bytes are equal."""
    content = random.Random(seed).randbytes(PAGE - compressible)
    return content + bytes([seed % 251 + 1]) * compressible


class Vm:
    """An index, and what it should lead to."""

    def __init__(self, pages: int) -> None:
        self.index: Entries = np.zeros(pages, np.uint64)
        self.content: dict[int, bytes] = {}

    def evict(self, store: PageStore, page: int, content: bytes) -> None:
        with store.locked():
            store.make_room(1, 0, 0)
            self.index[page] = store.put(store.pack(content))[0]
        self.content[page] = content

    def check(self, reader: BlockReader) -> None:
        buffer = memoryview(bytearray(PAGE))
        for page, content in self.content.items():
            if self.index[page] == NO_COPY:
                assert content == bytes(PAGE)
            else:
                reader.read_into(int(self.index[page]), buffer)
                assert bytes(buffer) == content


@pytest.fixture
def vms() -> list[Vm]:
    return [Vm(400), Vm(400)]


@pytest.fixture(params=list(Codec))
def store(tmp_path: Path, vms: list[Vm], request: pytest.FixtureRequest) -> Iterator[PageStore]:
    made = PageStore(tmp_path, request.param, None, lambda: [vm.index for vm in vms])
    yield made
    made.close()


def test_every_kind_of_page_comes_back(store: PageStore, vms: list[Vm], tmp_path: Path) -> None:
    contents = [page_of(1), page_of(2, 2200), page_of(3, 3200), bytes(PAGE), b"\1" * PAGE]
    for number, content in enumerate(contents):
        vms[0].evict(store, number, content)
    kinds = [kind_of(int(entry)) for entry in vms[0].index[[0, 1, 2, 4]]]
    assert kinds == [Kind.WHOLE, Kind.HALF, Kind.QUARTER, Kind.QUARTER]
    assert vms[0].index[3] == NO_COPY
    vms[0].check(BlockReader(tmp_path))


def test_equal_pages_are_kept_once_also_of_two_vms(store: PageStore, vms: list[Vm]) -> None:
    for number in range(100):
        for vm in vms:
            vm.evict(store, number, page_of(number % 10))
    assert store.shared == 190
    assert store.taken_bytes() == 10 * PAGE


def test_pages_of_equal_checksum_are_compared(
    store: PageStore, vms: list[Vm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that makes CRC-32 collide gets no page of another."""
    monkeypatch.setattr("memvirt.live.pager.store.zlib.crc32", lambda block: 7)
    for number in range(20):
        vms[number % 2].evict(store, number, page_of(number))
    assert store.shared == 0
    monkeypatch.undo()
    monkeypatch.setattr("memvirt.live.pager.blocks.zlib.crc32", lambda block: 7)
    for vm in vms:
        vm.check(BlockReader(tmp_path))


def test_dropped_blocks_become_free_and_others_stay(
    store: PageStore, vms: list[Vm], tmp_path: Path
) -> None:
    choose = random.Random(2)
    for round_number in range(6):
        for _ in range(400):
            vm = vms[choose.randrange(2)]
            page = choose.randrange(400)
            if choose.random() < 0.4:
                vm.index[page] = NO_COPY
                vm.content.pop(page, None)
            else:
                seed = choose.randrange(300)
                vm.evict(store, page, page_of(seed, choose.choice([0, 2200, 3200])))
        with store.locked():
            store.collect()
        named = {int(entry) for vm in vms for entry in vm.index if entry != NO_COPY}
        sizes = {Kind.QUARTER: 1024, Kind.HALF: 2048, Kind.WHOLE: 4096}
        assert store.taken_bytes() == sum(sizes[kind_of(entry)] for entry in named), round_number
        for vm in vms:
            vm.check(BlockReader(tmp_path))


def test_free_space_goes_back_to_the_file_system(
    store: PageStore, vms: list[Vm], tmp_path: Path
) -> None:
    for number in range(400):
        vms[0].evict(store, number, page_of(number))
    assert block_path(tmp_path, Kind.WHOLE).stat().st_blocks * 512 >= 400 * PAGE
    vms[0].index[:390] = NO_COPY
    with store.locked():
        store.collect()
    assert block_path(tmp_path, Kind.WHOLE).stat().st_blocks * 512 < 100 * PAGE


def test_damage_is_found(store: PageStore, vms: list[Vm], tmp_path: Path) -> None:
    for number, compressible in enumerate((0, 2200, 3200)):
        vms[0].evict(store, number, page_of(number, compressible))
    buffer = memoryview(bytearray(PAGE))
    for entry in map(int, vms[0].index[:3]):
        path = block_path(tmp_path, kind_of(entry))
        content = path.read_bytes()
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        with pytest.raises(PageDamaged, match="is not what was written"):
            BlockReader(tmp_path).read_into(entry, buffer)
        path.write_bytes(content[:50])
        with pytest.raises(PageDamaged, match="is not what was written"):
            BlockReader(tmp_path).read_into(entry, buffer)


def test_a_failed_write_stores_nothing(
    store: PageStore, vms: list[Vm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vms[0].evict(store, 0, page_of(0))
    before = store.taken_bytes()

    def fail(file: int, data: bytes, offset: int) -> int:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("memvirt.live.pager.store.os.pwrite", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        vms[0].evict(store, 1, page_of(1))
    monkeypatch.undo()
    assert store.taken_bytes() == before
    vms[0].evict(store, 1, page_of(1))
    vms[0].check(BlockReader(tmp_path))


def test_the_limit_is_kept_and_collection_makes_room(tmp_path: Path, vms: list[Vm]) -> None:
    store = PageStore(tmp_path, Codec.LZ4, 50 * PAGE, lambda: [vm.index for vm in vms])
    for number in range(50):
        vms[0].evict(store, number, page_of(number))
    with pytest.raises(StoreFull, match=r"limit of 200\.0 KiB"):
        vms[0].evict(store, 50, page_of(50))
    vms[0].index[:10] = NO_COPY
    for number in range(50, 60):
        vms[0].evict(store, number, page_of(number))
    vms[0].content = {page: c for page, c in vms[0].content.items() if page >= 10}
    vms[0].check(BlockReader(tmp_path))
    store.close()


def test_the_sharing_table_agrees_with_a_dictionary(tmp_path: Path) -> None:
    choose = random.Random(3)
    table = SharingTable(tmp_path / "sharing")
    model: dict[tuple[Kind, int], int] = {}
    for _ in range(20_000):
        kind, checksum = Kind(choose.randrange(3)), choose.randrange(1 << 32)
        entry = entry_of(kind, choose.randrange(1 << 29), checksum)
        table.insert(entry)
        model[kind, checksum] = entry
    found = sum(table.find(*key) == entry for key, entry in model.items())
    assert found == len(model)
    kept = np.array(sorted(model.values())[::2], np.uint64)
    table.rebuild(kept)
    hits = [entry for entry in model.values() if table.find(kind_of(entry), entry & (2**32 - 1))]
    assert sorted(hits) == kept.tolist()
    assert all(slot_of(entry) >= 0 for entry in hits)
    table.close()
