# SPDX-License-Identifier: Apache-2.0
"""A snapshot is read back as it was; one that was tampered with is refused in one line."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.images import image_path
from memvirt.observe.address_map import map_address
from memvirt.observe.snapshot import SnapshotError, load_snapshot, save_snapshot
from memvirt.observe.view import live_view
from memvirt.vmm.pmap import PageState
from tests.fuzz.mutations import change_members, members, packed

from .snapshots import ADDRESSES, good_snapshot, is_harmless, shown_of


@pytest.mark.parametrize("paging", ["flat", "shadow", "nested"])
def test_a_snapshot_says_what_the_vm_says(paging: str, tmp_path: Path) -> None:
    with VirtualMachine(Machine("64M"), memory="16M", paging=paging, name="v") as vm:
        vm.load(image_path("bundled"), append="workload=faults")
        for _ in range(20):
            if vm.run_quantum(300_000) is not None:
                break
        assert vm.outcome is None or vm.outcome.reason is EndReason.SUCCESS
        save_snapshot(vm, tmp_path / "vm")
        live, saved = live_view(vm), load_snapshot(tmp_path / "vm")
        assert dict(saved.registers) == dict(live.registers)
        assert saved.translation == live.translation
        for ppn in range(live.pages):
            assert saved.state_of(ppn) == live.state_of(ppn)
            assert saved.read_page(ppn) == live.read_page(ppn)
        addresses = {*ADDRESSES, live.registers["rip"], live.registers["rsp"]}
        found = 0
        for gva in addresses - {1 << 63}:
            try:
                expected = map_address(live, gva)
            except ValueError:
                continue
            found += expected.machine_address is not None
            assert map_address(saved, gva) == expected
        assert found
        if paging != "flat":
            assert len(map_address(saved, live.registers["rip"]).second) == 4


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return good_snapshot(tmp_path_factory.mktemp("good") / "vm")


def use(path: Path) -> None:
    """All that the command does with a snapshot; only a refusal in one line may come of it."""
    try:
        for text in shown_of(path):
            assert is_harmless(text)
    except SnapshotError as error:
        text = str(error)
        assert text.startswith(f"{path}: ")
        assert text.isprintable(), text


@pytest.mark.parametrize("seed", range(8))
def test_no_mutation_is_more_than_a_refusal(seed: int, good: bytes, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / "vm"
    parts = members(good)
    for _ in range(60):
        if draw.random() < 0.4:
            data = bytearray(good)
            for _ in range(draw.choice((1, 2, 30))):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        else:
            changed = parts
            for _ in range(draw.choice((1, 1, 3))):
                changed = change_members(draw, changed) if changed else changed
            path.write_bytes(packed(changed))
        use(path)


@pytest.mark.parametrize("seed", range(4))
def test_any_content_of_pages_and_tables_can_be_mapped(
    seed: int, good: bytes, tmp_path: Path
) -> None:
    """Tables that point to themselves, to nowhere, to frames that are not there."""
    draw = random.Random(seed)
    path = tmp_path / "vm"
    parts = members(good)
    mpns = struct.unpack(f"<{len(parts['mpns']) // 4}I", parts["mpns"])
    for _ in range(20):
        frames = bytearray()
        for mpn in mpns:
            targets = (mpn, draw.choice(mpns), 10, 11, 20, draw.getrandbits(40))
            flags = draw.choice((1, 3, 7, 0x87, 0x37))
            frames += struct.pack("<Q", draw.choice(targets) << 12 | flags) * 512
        path.write_bytes(packed(parts | {"frames/0": bytes(frames)}))
        use(path)


def _refused(path: Path, words: str) -> None:
    with pytest.raises(SnapshotError, match=words) as raised:
        load_snapshot(path)
    assert str(raised.value).isprintable()


def test_a_bomb_is_refused_before_it_is_unpacked(good: bytes, tmp_path: Path) -> None:
    """3 GiB of zeroes in a small file: neither as metadata nor as content that is asked for."""
    path = tmp_path / "vm"
    parts = members(good)
    meta = json.loads(parts["meta.json"])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    for name in ("meta.json", "state", "frames/0", "extra"):
        path.write_bytes(packed(parts | {name: bytes(64 << 20)}))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (48 << 20), limit[1]))
        try:
            _refused(path, "member|meta.json")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
    meta["pages"] = 1 << 40
    path.write_bytes(packed(parts | {"meta.json": json.dumps(meta).encode()}))
    _refused(path, "pages")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_what_is_no_snapshot(good: bytes, tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"hello\x1b[2J"), ("zip", packed({"a": b""}))):
        (tmp_path / name).write_bytes(content)
        _refused(tmp_path / name, "not a memvirt snapshot")
    os.mkfifo(tmp_path / "pipe")
    _refused(tmp_path / "pipe", "not a regular file")
    _refused(tmp_path, "not a regular file")
    _refused(tmp_path / "none", "No such file")
    (tmp_path / "old").write_bytes(packed({"meta.npy": b"", "state.npy": b""}))
    _refused(tmp_path / "old", "older memvirt")
    (tmp_path / "deep").write_bytes(packed(members(good) | {"meta.json": b"[" * 60_000}))
    _refused(tmp_path / "deep", "meta.json")


def test_parts_that_contradict_each_other(good: bytes, tmp_path: Path) -> None:
    """Each part is sound alone: a frame of two pages, or shared and not; a root in the guest."""
    path = tmp_path / "vm"
    parts = members(good)
    state = np.frombuffer(parts["state"], np.uint8).copy()
    frame = np.frombuffer(parts["frame"], "<u4").copy()
    first, second = np.flatnonzero(state == PageState.PRIVATE)[:2]

    def changed(new_state: int, new_frame: int) -> bytes:
        states, frames = state.copy(), frame.copy()
        states[second], frames[second] = new_state, new_frame
        return packed(parts | {"state": states.tobytes(), "frame": frames.tobytes()})

    path.write_bytes(changed(PageState.PRIVATE, int(frame[first])))
    _refused(path, "belongs to two pages")
    path.write_bytes(changed(PageState.SHARED, int(frame[first])))
    _refused(path, "one page's own, and shared")
    path.write_bytes(changed(PageState.PRIVATE, int(max(frame)) + 1))
    _refused(path, "is missing")
    path.write_bytes(changed(PageState.SHARED, int(frame[second])))
    use(path)  # shared by pages of other VMs
    meta = json.loads(parts["meta.json"])
    meta["translation"]["root"] = int(frame[first])
    path.write_bytes(packed(parts | {"meta.json": json.dumps(meta).encode()}))
    _refused(path, "is a page of the guest")
