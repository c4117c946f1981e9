# SPDX-License-Identifier: Apache-2.0
"""Page sharing on real frames: never unequal, never across salts, and counted right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.address import PpnArray
from memvirt.machine.content import Hashes, hash_pages
from memvirt.machine.memory import FrameKind
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions, Salting
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from tests.pages import make_page, pages

from .hosts import Guest, Host

MODES = [PagingMode.SHADOW, PagingMode.NESTED]
OPTIONS = {"ShareScanTime": 0.0, "AllocGuestLargePage": False}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, 4096, MemoryOptions(**OPTIONS))
    yield host
    host.check()
    host.close()


def guest(host: Host, group: str = "", paging: PagingMode = PagingMode.NESTED) -> Guest:
    return host.power_on(VmSettings(f"vm{len(host.guests)}", 64, 10, group=group), paging)


def scan(host: Host, *guests: Guest) -> int:
    return sum(
        host.kernel.sharing.scan_pages(one.managed.guest, np.arange(one.settings.memory))
        for one in guests
    )


@settings(deadline=None)  # the first call compiles
@given(st.lists(pages, min_size=1, max_size=4))
def test_the_hash_is_xxh3(contents: list[bytes]) -> None:
    content = np.frombuffer(b"".join(contents), np.uint8)
    rows = np.arange(len(contents))[::-1]
    expected = [xxhash.xxh3_64_intdigest(contents[row]) for row in rows]
    assert hash_pages(content, rows).tolist() == expected


@pytest.mark.parametrize("paging", MODES)
def test_equal_pages_of_a_group_become_one_frame(host: Host, paging: PagingMode) -> None:
    one, two = guest(host, "g", paging), guest(host, "g", paging)
    for vm in (one, two):
        for ppn in range(10, 20):
            vm.fill(ppn, make_page(ppn, 4096))
        vm.fill(20, bytes(4096))
    before = host.machine.free_frames
    assert scan(host, one, two) == 2 * 11
    assert host.machine.free_frames == before + 11
    sample = host.kernel.sample()
    assert (sample.host.shared, sample.host.common, sample.host.sharing_saved) == (22, 11, 11)
    assert sample.host.zero == 2
    assert [vm.shared_saved for vm in sample.vms] == [5.5, 5.5]
    host.check()
    for ppn in range(10, 20):
        assert one.read(ppn, 3) == two.read(ppn, 3)


@pytest.mark.parametrize("paging", MODES)
def test_a_write_gets_a_copy_and_the_last_user_the_frame_itself(
    host: Host, paging: PagingMode
) -> None:
    one, two = guest(host, "g", paging), guest(host, "g", paging)
    for vm in (one, two):
        vm.fill(5, make_page(1, 4096))
    scan(host, one, two)
    mpn = int(two.vmm.pmap.frame[5])
    one.write(5, 0, 77)
    host.check()
    assert one.read(5, 0) == 77
    assert two.read(5, 0) != 77
    assert one.vmm.pmap.frame[5] != mpn
    assert host.machine.references[mpn] == 1
    two.write(5, 1, 88)
    assert two.vmm.pmap.frame[5] == mpn  # nobody else is left: no copy
    assert two.vmm.pmap.state_of(5) is PageState.PRIVATE
    assert host.machine.kind[mpn] == FrameKind.GUEST


@pytest.mark.parametrize(
    ("salting", "groups", "together"),
    [
        (Salting.NONE, ("", "a", "b"), True),
        (Salting.GROUP_ELSE_ALL, ("", ""), True),
        (Salting.GROUP_ELSE_ALL, ("", "a"), False),
        (Salting.GROUP_ELSE_VM, ("", ""), False),
        (Salting.GROUP_ELSE_VM, ("a", "b"), False),
        (Salting.GROUP_ELSE_VM, ("a", "a"), True),
    ],
)
def test_salting(tmp_path: Path, salting: Salting, groups: tuple[str, ...], together: bool) -> None:
    host = Host(tmp_path, 4096, MemoryOptions(**OPTIONS, ShareForceSalting=salting))
    guests = [guest(host, group) for group in groups]
    for vm in guests:
        vm.fill(3, make_page(9, 500))
        vm.fill(4, bytes(4096))
    scan(host, *guests)
    scan(host, *guests)
    host.check()
    for ppn in (3, 4):
        frames = {int(vm.vmm.pmap.frame[ppn]) for vm in guests}
        assert len(frames) == (1 if together else len(guests))
    # A page may still be shared inside one VM.
    guests[0].fill(5, make_page(9, 500))
    scan(host, guests[0])
    assert guests[0].vmm.pmap.frame[3] == guests[0].vmm.pmap.frame[5]
    host.close()


def test_the_vmm_refuses_a_frame_of_another_salt(host: Host) -> None:
    one, two = guest(host, "a"), guest(host, "b")
    for vm in (one, two):
        vm.fill(3, make_page(9, 500))
    mpn = one.vmm.make_shared(3)
    assert not two.vmm.may_share(mpn)
    with pytest.raises(ValueError, match="not a SHARED frame of salt"):
        two.vmm.share([3], mpn)


def test_equal_hashes_of_unequal_pages_share_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = guest(host, "g"), guest(host, "g")
    memory = type(one.managed.guest)

    def all_alike(self: object, ppns: PpnArray) -> Hashes:
        return np.full(len(ppns), 7, np.uint64)

    monkeypatch.setattr(memory, "hash_pages", all_alike)
    monkeypatch.setattr(
        memory,
        "share_known",
        lambda self, ppns, table: (all_alike(self, ppns), np.zeros(len(ppns), np.bool_)),
    )
    for number, vm in enumerate((one, two)):
        for ppn in range(8):
            vm.fill(ppn, make_page(100 * number + ppn, 4096))
    for _ in range(3):
        scan(host, one, two)
        host.check()
    assert host.kernel.sharing.collisions > 0
    for number, vm in enumerate((one, two)):
        for ppn in range(8):
            page = make_page(100 * number + ppn, 4096)
            assert vm.read(ppn, 2) == int.from_bytes(page[16:24], "little")


def test_a_hint_that_has_changed_is_not_used(host: Host) -> None:
    one, two = guest(host, "g"), guest(host, "g")
    one.fill(1, make_page(1, 300))
    scan(host, one)
    assert host.kernel.sharing.hints(one.managed.guest) == 1
    one.write(1, 100, 5)  # a hint is not write-protected
    two.fill(1, make_page(1, 300))
    assert scan(host, two) == 0
    assert one.vmm.pmap.state_of(1) is PageState.PRIVATE
    one.fill(1, make_page(1, 300))
    assert scan(host, one) == 2


def test_the_table_survives_frames_that_come_and_go(host: Host) -> None:
    one, two = guest(host, "g"), guest(host, "g")
    for round_number in range(6):
        for vm in (one, two):
            for ppn in range(30):
                vm.fill(ppn, make_page(1000 * (round_number % 3) + ppn, 4096))
        assert scan(host, one, two) == 60
        host.check()
        for vm in (one, two):
            for ppn in range(30):
                vm.write(ppn, 1, ppn)
    hints = host.kernel.sharing.hints(one.managed.guest)
    assert hints + host.kernel.sharing.hints(two.managed.guest) <= 120


def test_a_pass_sees_every_page_once(host: Host) -> None:
    one = guest(host, "g")
    for ppn in range(64):
        one.fill(ppn, make_page(ppn, 4096))
    sharing = host.kernel.sharing
    for _ in range(10):
        sharing.scan(one.managed.guest, 6.4)
    assert sharing.scanned == 64
    assert sharing.passes(one.managed.guest) == 1
    assert sharing.hints(one.managed.guest) == 64
