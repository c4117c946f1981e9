# SPDX-License-Identifier: Apache-2.0
"""The swap file: round trips, and a disk that fails in every way it can."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.address import PAGE_BYTES
from memvirt.machine.memory import MachineMemory
from memvirt.vmm.stores.backing import REFUSED, BackingStoreError, PageCorrupted
from memvirt.vmm.stores.swap_file import SwapFile, SwapSpaceError, WriteBuffers
from tests.pages import as_pages, make_page, pages


class Disk:
    """A swap file whose writes fail while ``number`` is an errno; ``short`` writes half."""

    def __init__(self, path: Path, slots: int = 8, buffers: int = 4) -> None:
        self.machine = MachineMemory(buffers + 1)
        self.buffers = WriteBuffers(self.machine, buffers)
        self.file = SwapFile(path, slots, self.buffers, wait_ns=7)
        self.number = 0

    def put(self, *contents: bytes) -> list[int]:
        return [
            int(slot) for slot in self.file.put(np.arange(len(contents)), as_pages(list(contents)))
        ]

    def close(self) -> None:
        self.file.close()
        self.buffers.close()
        assert self.machine.free_frames == self.machine.frames


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(tmp_path / "vm.vswp")
    real = os.pwritev

    def pwritev(fd: int, views: list[memoryview], offset: int) -> int:
        if disk.number:
            raise OSError(disk.number, os.strerror(disk.number))
        return real(fd, views, offset)

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.pwritev", pwritev)
    yield disk
    disk.close()
    assert not (tmp_path / "vm.vswp").exists()


A, B, C, D, E = (make_page(seed, 4096) for seed in range(5))
steps = st.lists(st.tuples(st.sampled_from(["put", "take", "drop", "submit", "settle"]), pages))


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_what_is_kept_comes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes]]
) -> None:
    disk = Disk(tmp_path_factory.mktemp("swap") / "a", slots=6, buffers=3)
    kept: dict[int, bytes] = {}
    for what, page in steps:
        if what == "put":
            (slot,) = disk.put(page)
            assert (slot >= 0) or disk.file.used == 6 or disk.file._dropped
            if slot >= 0:
                assert slot not in kept
                kept[slot] = page
        elif what == "submit":
            disk.file.submit()
        elif what == "settle":
            disk.file.complete()
        elif kept:
            slot = min(kept)
            if what == "take":
                assert disk.file.take(slot) == kept.pop(slot)
            else:
                disk.file.discard([slot])
                del kept[slot]
        assert {slot: disk.file.read(slot) for slot in kept} == kept
        assert disk.file.used == len(kept)
    disk.close()


def test_the_file_is_private_and_allocated_in_full(disk: Disk) -> None:
    about = disk.file.path.stat()
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_size == 8 * PAGE_BYTES
    assert about.st_blocks * 512 >= 8 * PAGE_BYTES


def test_a_failed_write_loses_nothing(disk: Disk) -> None:
    disk.number = errno.ENOSPC
    slots = disk.put(A, B)
    disk.file.submit()
    disk.file.complete()
    assert disk.file.error is not None
    assert disk.file.error.errno == errno.ENOSPC
    assert [disk.file.read(slot) for slot in slots] == [A, B]
    assert disk.put(C) == [REFUSED]  # not while writing fails
    assert disk.file.take(slots[0]) == A
    assert not disk.file.retry()
    disk.number = 0
    assert disk.file.retry()
    assert disk.file.buffered == 0
    assert disk.file.read(slots[1]) == B
    assert disk.put(C)[0] >= 0


def test_an_error_ends_when_the_guest_has_its_pages_back(disk: Disk) -> None:
    disk.number = errno.EIO
    (slot,) = disk.put(A)
    disk.file.submit()
    disk.file.complete()
    assert disk.file.take(slot) == A
    disk.number = 0
    assert disk.file.retry()
    assert disk.put(B)[0] >= 0


def test_a_failing_file_does_not_hold_all_buffers(disk: Disk, tmp_path: Path) -> None:
    disk.number = errno.EIO
    assert disk.put(A, B, C, D)[2:] == [REFUSED, REFUSED]
    disk.number = 0
    other = SwapFile(tmp_path / "other.vswp", 4, disk.buffers)
    assert other.put(np.arange(1), as_pages([E]))[0] >= 0
    other.close()


def test_a_page_taken_while_it_is_written_frees_its_slot_afterwards(disk: Disk) -> None:
    (slot,) = disk.put(A)
    disk.file.submit()
    assert disk.file.take(slot) == A
    others = disk.put(B)
    assert slot not in others
    disk.file.complete()
    assert disk.file.used == 1
    assert slot in disk.put(E, A, B, C, D)


def test_reclaim_faster_than_the_disk_waits_for_it(disk: Disk) -> None:
    slots = disk.put(A, B, C, D, E)  # more than there are buffers
    assert min(slots) >= 0
    assert disk.file.writes == 4
    assert [disk.file.read(slot) for slot in slots] == [A, B, C, D, E]


def test_a_full_file_refuses(disk: Disk) -> None:
    slots = disk.put(*[A] * 10)
    assert slots[8:] == [REFUSED, REFUSED]
    assert sorted(slots[:8]) == list(range(8))


def test_short_writes_are_completed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(fd: int, views: list[memoryview], offset: int) -> int:
        return os.pwrite(fd, views[0][:1000], offset)

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.pwritev", short)
    slots = disk.put(A, B, C)
    disk.file.submit()
    disk.file.complete()
    assert disk.file.buffered == 0
    assert [disk.file.read(slot) for slot in slots] == [A, B, C]


def test_damage_and_read_errors(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = disk.put(A, B)
    disk.file.submit()
    disk.file.complete()
    with disk.file.path.open("r+b") as file:
        file.seek(slots[0] * PAGE_BYTES + 99)
        file.write(bytes([A[99] ^ 1]))
    with pytest.raises(PageCorrupted, match="is not what was written"):
        disk.file.take(slots[0])

    def broken(fd: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("memvirt.vmm.stores.swap_file.os.pread", broken)
        with pytest.raises(BackingStoreError, match="cannot be read: Input/output error"):
            disk.file.take(slots[1])
    assert disk.file.take(slots[1]) == B


def test_two_vms_share_the_buffers_but_no_slot(tmp_path: Path) -> None:
    machine = MachineMemory(8)
    buffers = WriteBuffers(machine, 2)
    one, two = (SwapFile(tmp_path / name, 4, buffers) for name in "ab")
    first = one.put(np.arange(2), as_pages([A, B]))
    second = two.put(np.arange(2), as_pages([C, D]))  # the buffers are full of the other's pages
    assert (second >= 0).all()
    assert [one.read(int(slot)) for slot in first] == [A, B]
    assert [two.read(int(slot)) for slot in second] == [C, D]
    two.submit()
    two.complete()
    assert A not in (tmp_path / "b").read_bytes()
    assert C not in (tmp_path / "a").read_bytes()
    for file in (one, two):
        file.close()
    buffers.close()


def test_no_room_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.posix_fallocate", full)
    buffers = WriteBuffers(MachineMemory(2), 1)
    with pytest.raises(SwapSpaceError, match=r"x\.vswp: a swap file of 4096 KiB cannot be made"):
        SwapFile(tmp_path / "x.vswp", 1024, buffers)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SwapSpaceError, match="No such file or directory"):
        SwapFile(tmp_path / "no" / "x.vswp", 1, buffers)


def test_the_machine_has_less_by_its_buffers() -> None:
    machine = MachineMemory(8)
    buffers = WriteBuffers(machine, 3)
    assert machine.statistics().vmkernel == 3
    assert machine.free_frames == 5
    buffers.close()
    assert machine.free_frames == 8
    assert np.count_nonzero(machine.kind) == 0


def test_a_short_read_is_no_loss(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    (slot,) = disk.put(A)
    disk.file.complete()
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 1000), at))
    assert disk.file.read(slot) == A
