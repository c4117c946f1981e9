# SPDX-License-Identifier: Apache-2.0
"""The sharing forecast: against a naive count, and against what KSM then does."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from memvirt.live.forecast import VmHashes, forecast, forecast_sharing, zero_hash
from memvirt.live.kernel_pages import KernelPages
from memvirt.live.ksm import KSM_DIRECTORY, ksm_status, why_not_merged
from memvirt.live.page_states import LivePageState
from memvirt.live.vm import LiveVm, open_kernel_pages
from tests.waiting import until

from .conftest import Qemu


def hashed(name: str, contents: list[int], salt: str = "") -> VmHashes:
    """A VM with pages of these contents; content 0 is a page of zeroes."""
    hashes = np.array([zero_hash() if c == 0 else np.uint64(c) for c in contents], np.uint64)
    return VmHashes(name, salt, hashes, 0, 0.0, (), hashes.size)


def test_parts_add_up_to_a_naive_count() -> None:
    random = np.random.default_rng(7)
    contents = [list(map(int, random.integers(0, 40, 300))) for _ in range(3)]
    vms = [hashed(name, pages) for name, pages in zip("abc", contents, strict=True)]
    result = forecast(vms)
    together = Counter(page for pages in contents for page in pages)
    assert result.saved == sum(count - 1 for count in together.values())
    assert result.zero == together[0] - 1
    for vm, pages in zip(result.vms, contents, strict=True):
        own = Counter(page for page in pages if page)
        assert vm.within == sum(count - 1 for count in own.values())
        assert vm.zero == pages.count(0)
    for pair in result.pairs:
        first, second = (set(contents["abc".index(name)]) for name in (pair.first, pair.second))
        assert pair.common == len((first & second) - {0})


def test_salts_keep_vms_apart() -> None:
    vms = [hashed("a", [0, 0, 1, 2], "x"), hashed("b", [0, 1, 2], "x"), hashed("c", [0, 1, 9], "y")]
    result = forecast(vms)
    assert result.saved == 3 + 0 + 3
    assert [(salt.salt, salt.saved) for salt in result.salts] == [("x", 2 + 0 + 2), ("y", 0)]
    assert result.salted_saved == 4
    assert {(pair.first, pair.second): pair.same_salt for pair in result.pairs} == {
        ("a", "b"): True,
        ("a", "c"): False,
        ("b", "c"): False,
    }


@pytest.mark.qemu
def test_why_ksm_finds_nothing(memfd_vm: Qemu, start_qemu: Callable[..., Qemu]) -> None:
    with memfd_vm.open() as vm:
        assert "shared memory (memfd)" in why_not_merged(vm.layout.blocks[0])
    off = start_qemu("unmerged", "-accel", "tcg", "-m", "32M", "-machine", "pc,mem-merge=off", "-S")
    assert not off.discovered().merges
    with off.open() as vm:
        assert "mem-merge=off" in why_not_merged(vm.layout.blocks[0])
        assert not vm.layout.blocks[0].ksm_can_merge


def frames_held(vms: list[LiveVm], kernel: KernelPages) -> float:
    """Frames behind these VMs' pages; the host's page of zeroes is none of theirs.

    Whoever else on this host merges the same pages changes nothing: a frame they share with others
    is one frame. But others may take places in the frames of a content that needs several (KSM maps
    a frame 256 times at most), zeroes above all: of those frames the VMs' part counts.
    """
    status = ksm_status()
    most = status.most_sharers if status is not None else 1
    held = []
    for vm in vms:
        states = vm.page_states(kernel)
        held.append(states.mpn[states.where(LivePageState.PRIVATE, LivePageState.SHARED)])
    frames, own = np.unique(np.concatenate(held), return_counts=True)
    mapped = kernel.counts(frames).astype(np.float64)
    full = mapped >= most
    return float(np.count_nonzero(~full) + np.sum(own[full] / mapped[full]))


@pytest.fixture
def somebody_else() -> Iterator[None]:
    """Memory of somebody else on this host that KSM merges with the VMs': pages of zeroes."""
    with mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_MERGEABLE)
        memory[:] = bytes(len(memory))
        yield


def merging_pages(vms: list[LiveVm]) -> int | None:
    """Pages KSM itself says it has merged of these processes; None if this kernel does not say."""
    try:
        return sum(int(vm.process.read("ksm_merging_pages")) for vm in vms)
    except OSError:
        return None


@pytest.mark.qemu
@pytest.mark.host_wide
def test_the_forecast_is_what_ksm_saves(
    host_state: None,
    somebody_else: None,
    anonymous_vm: Qemu,
    start_linux: Callable[..., Qemu],
) -> None:
    """Two guests, stopped so that their pages keep still: within 1 %, whoever else merges."""
    if ksm_status() is None:
        pytest.skip("this kernel has no KSM (CONFIG_KSM)")
    kernel, problem = open_kernel_pages()
    if kernel is None:
        pytest.skip(problem)
    second = start_linux("second", "-m", "256M", "-cpu", "max")
    with kernel, anonymous_vm.open() as one, second.open() as two:
        vms = [one, two]
        for vm in vms:
            vm.ask().execute("stop")
        try:
            foretold = forecast_sharing(vms, kernel)
            assert foretold.ksm_saved > 10_000
            held = frames_held(vms, kernel)
            (KSM_DIRECTORY / "smart_scan").write_text("0")
            (KSM_DIRECTORY / "pages_to_scan").write_text("20000")
            (KSM_DIRECTORY / "sleep_millisecs").write_text("10")
            (KSM_DIRECTORY / "run").write_text("1")
            _until_ksm_is_done(vms, kernel)
            saved = held - frames_held(vms, kernel)
            assert abs(saved - foretold.ksm_saved) <= foretold.ksm_saved / 100
            counts = [vm.page_states(kernel).counts() for vm in vms]
            assert all(count.shared and count.shared > 1000 for count in counts)
            # Where KSM splits a large page, Linux maps the host's page of zeroes for the zero pages
            # in it (since 6.13), instead of merging them.
            charged = sum((count.shared_saved or 0) + (count.zero or 0) for count in counts)
            # Others on this host may share some of these frames too: then more of it is theirs.
            assert charged >= 0.99 * saved
            merged = merging_pages(vms)
            if merged is not None:  # with those of which all others were written to since
                assert sum(count.shared or 0 for count in counts) <= merged
            again = forecast_sharing(vms, kernel)
            assert (again.within, again.across) == (foretold.within, foretold.across)
        finally:
            for vm in vms:
                vm.ask().execute("cont")


def _until_ksm_is_done(vms: list[LiveVm], kernel: KernelPages) -> None:
    """Until KSM has been over all memory four times, the last time with nothing new for them."""
    seen: list[tuple[int, float]] = []

    def settled() -> bool:
        status = ksm_status()
        assert status is not None
        if not seen or seen[-1][0] != status.full_scans:
            seen.append((status.full_scans, frames_held(vms, kernel)))
        return len(seen) > 5 and abs(seen[-1][1] - seen[-2][1]) <= 20

    until(settled, "KSM's scans", 500)
