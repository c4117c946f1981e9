# SPDX-License-Identifier: Apache-2.0
"""No VM ever sees another's bytes, and no write tells it what another group has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from memvirt.address import PAGE_BYTES
from memvirt.machine.memory import FrameKind
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmm.content import COMPRESS, SWAP
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState
from tests.pages import make_page

from .hosts import Guest, Host

PAGES = 64
SECRET = b"the secret of another tenant, 32"
PAIRS = [
    (PagingMode.SHADOW, PagingMode.NESTED),
    (PagingMode.NESTED, PagingMode.SHADOW),
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    options = MemoryOptions(ShareScanTime=0.001, MemZipMaxPct=20)
    host = Host(tmp_path, 420, options)
    yield host
    host.check()
    host.close()


def guest(host: Host, group: str, paging: PagingMode) -> Guest:
    return host.power_on(VmSettings(group, PAGES, 10, group=group), paging)


def secret_page(number: int, compressible: bool) -> bytes:
    rest = bytes(PAGE_BYTES) if compressible else make_page(number, PAGE_BYTES)
    return (SECRET + rest)[:PAGE_BYTES]


def visible(vm: Guest) -> bytes:
    """All memory the guest can read, each page touched."""
    for ppn in range(PAGES):
        vm.read(ppn, 0)
    return b"".join(vm.vmm.read_page(ppn) for ppn in range(PAGES))


def frames_of(host: Host, vm: Guest) -> bytes:
    """All machine memory the VM's translations can reach."""
    vmm = vm.vmm
    resident = np.isin(vmm.pmap.state, (PageState.PRIVATE, PageState.SHARED))
    mpns = np.concatenate((host.machine.owned_by(vmm.vm_id), vmm.pmap.frame[resident]))
    return b"".join(host.machine.page(int(mpn)).tobytes() for mpn in mpns)


def freed(host: Host, owner: Guest) -> None:
    host.power_off(owner.vmm.vm_id)


def swapped(host: Host, owner: Guest) -> None:
    assert owner.vmm.unmap(range(PAGES)).put_into(SWAP) > 0
    host.kernel.balance(0)


def compressed(host: Host, owner: Guest) -> None:
    assert owner.vmm.unmap(range(PAGES)).put_into(COMPRESS) > 0


def ballooned(host: Host, owner: Guest) -> None:
    owner.balloon.target = PAGES
    assert len(owner.balloon.serve(list(range(PAGES)))) == PAGES
    host.kernel.balance(0)


def shared(host: Host, owner: Guest) -> None:
    for _ in range(3):
        host.kernel.balance(60_000_000_000)
    assert owner.vmm.pmap.count(PageState.SHARED) > 0


def brought_back(host: Host, owner: Guest) -> None:
    """Swapped and compressed, taken back, and written over: what is left behind is old."""
    owner.vmm.unmap(range(PAGES))
    for ppn in range(PAGES):
        owner.write(ppn, 0, 1)
        owner.fill(ppn, bytes(PAGE_BYTES))
    host.kernel.balance(0)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("compressible", [False, True])
@pytest.mark.parametrize("fate", [freed, swapped, compressed, ballooned, shared, brought_back])
def test_secrets_stay_with_their_owner(
    host: Host,
    pair: tuple[PagingMode, PagingMode],
    compressible: bool,
    fate: Callable[[Host, Guest], None],
) -> None:
    if fate is compressed and not compressible:
        pytest.skip("such pages are not compressed")
    if fate is swapped and compressible:
        pytest.skip("such pages are compressed")
    owner, other = guest(host, "a", pair[0]), guest(host, "b", pair[1])
    for ppn in range(PAGES):
        owner.fill(ppn, secret_page(ppn % 60, compressible))
    for ppn in range(0, PAGES, 2):
        other.write(ppn, 5, ppn)
    fate(host, owner)
    # The other VM now touches all its memory, in whatever frames are free, and more.
    assert SECRET not in visible(other)
    other.vmm.unmap(range(PAGES))
    host.kernel.balance(60_000_000_000)
    assert SECRET not in visible(other)
    assert SECRET not in frames_of(host, other)
    assert SECRET not in other.swap.path.read_bytes()
    for ppn in range(0, PAGES, 2):
        assert other.read(ppn, 5) == ppn


def test_a_frame_is_empty_when_it_changes_hands(host: Host) -> None:
    owner = guest(host, "a", PagingMode.NESTED)
    for ppn in range(PAGES):
        owner.fill(ppn, secret_page(ppn, False))
    host.power_off(owner.vmm.vm_id)
    assert SECRET in host.machine.content.tobytes()  # it is still there, in free frames ...
    mpns = host.machine.allocate(host.machine.free_frames, kind=FrameKind.GUEST)
    assert not host.machine.content.reshape(-1, PAGE_BYTES)[mpns].any()  # ... and nowhere else
    host.machine.release(mpns)


def observed(folder: Path, paging: PagingMode, same: bool, group: str) -> list[object]:
    """What a guest can notice of its own writes while another group's VM has ``same`` pages."""
    folder.mkdir()
    host = Host(folder, 2048, MemoryOptions(ShareScanTime=0.001))
    victim, attacker = guest(host, "victim", paging), guest(host, group, paging)
    for ppn in range(PAGES):
        victim.fill(ppn, make_page(ppn, 4096) if same else make_page(1000 + ppn, 4096))
        attacker.fill(ppn, make_page(ppn, 4096))
    victim.fill(3, bytes(4096) if same else make_page(7, 4096))
    attacker.fill(3, bytes(4096))
    for _ in range(4):
        host.kernel.balance(60_000_000_000)
    notes: list[object] = []
    state = attacker.vmm.state
    for ppn in range(PAGES):
        before = (int(state.hidden_faults), int(state.stall_ns))
        attacker.write(ppn, 9, 1)
        after = (int(state.hidden_faults), int(state.stall_ns))
        notes.append((after[0] - before[0], after[1] - before[1]))
    notes.append(attacker.vmm.counts["share_breaks"])
    host.check()
    host.close()
    return notes


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
def test_a_write_does_not_tell_what_another_group_has(tmp_path: Path, paging: PagingMode) -> None:
    """The oracle of copy-on-write, without a clock: faults, exits, virtual time, copies."""
    alike = observed(tmp_path / "alike", paging, True, "attacker")
    different = observed(tmp_path / "different", paging, False, "attacker")
    assert alike == different
    # The oracle is real: inside one group the same writes do tell.
    inside = observed(tmp_path / "inside", paging, True, "victim")
    assert inside != alike
