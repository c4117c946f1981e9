# SPDX-License-Identifier: Apache-2.0
"""Swap files: what somebody else put at their path, and a disk that takes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES
from memvirt.machine.memory import MachineMemory
from memvirt.vmm.stores.swap_file import SwapFile, SwapSpaceError, WriteBuffers


@pytest.fixture
def buffers() -> Iterator[WriteBuffers]:
    machine = MachineMemory(16)
    made = WriteBuffers(machine, 8)
    yield made
    made.close()
    assert machine.free_frames == machine.frames


def test_a_file_that_is_there_already_is_not_used(tmp_path: Path, buffers: WriteBuffers) -> None:
    """It may be readable for everybody, and open in another process."""
    path = tmp_path / "vm.vswp"
    path.write_bytes(b"mine")
    path.chmod(0o666)
    with pytest.raises(SwapSpaceError, match=r"vm\.vswp.*File exists"):
        SwapFile(path, 4, buffers)
    assert path.read_bytes() == b"mine"
    assert buffers.files == []


def test_a_planted_link_is_not_followed(tmp_path: Path, buffers: WriteBuffers) -> None:
    victim = tmp_path / "precious"
    victim.write_bytes(b"precious")
    path = tmp_path / "vm.vswp"
    path.symlink_to(victim)
    with pytest.raises(SwapSpaceError, match="File exists"):
        SwapFile(path, 4, buffers)
    assert victim.read_bytes() == b"precious"
    path.unlink()
    path.symlink_to(tmp_path / "not-there")
    with pytest.raises(SwapSpaceError, match="File exists"):
        SwapFile(path, 4, buffers)
    assert not (tmp_path / "not-there").exists()


def test_a_disk_that_takes_nothing_is_an_error_and_loses_nothing(
    tmp_path: Path, buffers: WriteBuffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes of no bytes that report no error must neither hang the writer nor count as done."""
    file = SwapFile(tmp_path / "vm.vswp", 4, buffers)
    pages = np.random.default_rng(1).integers(0, 256, (3, PAGE_BYTES), np.uint8)
    slots = file.put(np.arange(len(pages)), pages).tolist()
    with monkeypatch.context() as broken:
        calls = iter(range(100))  # a writer that goes on for ever runs into StopIteration
        broken.setattr(os, "pwritev", lambda *_: 0)
        broken.setattr(os, "pwrite", lambda *_: next(calls) * 0)
        assert not file.retry()
    assert file.error is not None
    assert (file.buffered, buffers.free) == (3, 5)
    assert [file.read(slot) for slot in slots] == [page.tobytes() for page in pages]
    assert file.retry()
    assert (file.buffered, buffers.free) == (0, 8)
    assert [file.take(slot) for slot in slots] == [page.tobytes() for page in pages]
    file.close()
    assert not file.path.exists()
