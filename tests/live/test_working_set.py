# SPDX-License-Identifier: Apache-2.0
"""Working sets: the ways to measure them against a known share of touched pages; averages."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from memvirt.live.activity import LiveActivity
from memvirt.live.damon import Damon, DamonBusy, damon_problem
from memvirt.live.errors import KernelFeatureMissing, LiveError
from memvirt.live.idle_pages import IdlePages
from memvirt.live.page_states import LivePageState
from memvirt.live.vm import open_kernel_pages
from memvirt.live.working_set import (
    PeriodResult,
    SampledVm,
    WorkingSets,
    WorkingSetWay,
    sample_frames,
    sample_references,
)
from tests.waiting import until

from .conftest import SECONDS, Qemu

TOUCHED_MIB = 96


def test_averages_are_esxis() -> None:
    activity = LiveActivity()
    assert activity.estimate is None
    activity.add(0.8)
    assert (activity.slow, activity.fast) == (0.8, 0.8)
    activity.add(0.0)
    assert activity.slow == pytest.approx(0.7)
    assert activity.fast == pytest.approx(0.4)
    assert activity.estimate == pytest.approx(0.7)  # idle slowly
    activity.add(1.0)
    assert activity.estimate == pytest.approx(activity.slow)
    activity.add(1.0)
    assert activity.estimate == activity.fast == pytest.approx(0.85)  # active quickly


@pytest.fixture
def busy_guest(memfd_vm: Qemu) -> Iterator[Qemu]:
    """A guest that reads TOUCHED_MIB again and again."""
    memfd_vm.console.run(
        f"dd if=/dev/zero of=/tmp/hot bs=1M count={TOUCHED_MIB} 2>/dev/null; "
        "(while dd if=/tmp/hot of=/dev/null bs=1M 2>/dev/null; do echo >> /tmp/rounds; done) &"
    )
    try:
        yield memfd_vm
    finally:
        memfd_vm.console.run("rm -f /tmp/hot /tmp/rounds; wait")


def rounds(qemu: Qemu) -> int:
    text = qemu.console.run("echo rounds=$(cat /tmp/rounds 2>/dev/null | wc -l)")
    return int(text.rpartition("rounds=")[2].split()[0])


@pytest.mark.qemu
@pytest.mark.host_wide
def test_clear_refs_sees_what_a_guest_touches(host_state: None, busy_guest: Qemu) -> None:
    """The touched part is what the guest reads in the period, and little else."""
    with busy_guest.open() as vm:
        sampled = SampledVm(vm)
        try:
            begun = rounds(busy_guest)

            def wait(seconds: float) -> None:
                until(lambda: rounds(busy_guest) >= begun + 3, "three rounds of the guest", SECONDS)

            (result,) = sample_references([sampled], 0, wait)
        finally:
            sampled.close()
        assert result.error == ""
        assert result.fraction is not None
        touched = result.fraction * vm.layout.pages / 256
        assert TOUCHED_MIB * 0.98 <= touched <= TOUCHED_MIB * 1.6


@pytest.mark.qemu
@pytest.mark.host_wide
def test_damon_sees_what_a_guest_touches(host_state: None, busy_guest: Qemu) -> None:
    """Random sampling by DAMON against all touched pages by clear_refs, in the same guest."""
    try:
        damon = Damon()
    except (KernelFeatureMissing, DamonBusy) as error:
        pytest.skip(str(error))
    kernel, problem = open_kernel_pages()
    if kernel is None:
        pytest.skip(problem)
    with damon, kernel, busy_guest.open() as vm, SampledVm(vm) as sampled:
        random = np.random.default_rng(3)
        seconds = 8.0
        while True:  # until the guest has read all of it twice while DAMON looked
            begun = rounds(busy_guest)
            (result,) = sample_frames(damon, [sampled], seconds, 1000, random, kernel)
            assert result.error == ""
            if rounds(busy_guest) >= begun + 3:
                break
            seconds *= 2
        assert result.fraction is not None
        expected = TOUCHED_MIB * 256 / vm.layout.pages
        deviation = (expected * (1 - expected) / 1000) ** 0.5
        assert expected - 4 * deviation <= result.fraction
        assert result.fraction <= 1.8 * expected + 4 * deviation


class Fake:
    """Frames of which every third is touched; of frame numbers divisible by 7 nothing is known."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def touched(self, mpns: Sequence[int], seconds: float) -> dict[int, bool]:
        self.asked += mpns
        return {mpn: mpn % 3 == 0 for mpn in mpns if mpn % 7}

    def cpu_seconds(self) -> float:
        return 0.0

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.qemu
def test_pages_without_a_frame_are_untouched_and_unknown_ones_left_out(anonymous_vm: Qemu) -> None:
    kernel, problem = open_kernel_pages()
    if kernel is None:
        pytest.skip(problem)
    with kernel, anonymous_vm.open() as vm, SampledVm(vm) as sampled:
        vm.ask().execute("stop")
        try:
            random, fake = np.random.default_rng(1), Fake()
            (result,) = sample_frames(fake, [sampled], 0, vm.layout.pages, random, kernel)
            states = vm.page_states(kernel)
        finally:
            vm.ask().execute("cont")
        held = states.where(LivePageState.PRIVATE, LivePageState.SHARED)
        assert len(fake.asked) == held.size
        known = [mpn for mpn in fake.asked if mpn % 7]
        assert result.sampled == vm.layout.pages - held.size + len(known)
        assert result.touched == sum(mpn % 3 == 0 for mpn in known)


def test_a_failed_period_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = WorkingSets(list, way=WorkingSetWay.OFF)
    sets._add([PeriodResult("vm", 100, 50)])
    sets._add([PeriodResult("vm", 0, 0, "DAMON gave no answer")])
    assert sets.activity("vm").estimate == 0.5
    assert sets.activity("vm").periods == 1
    assert sets.error("vm") == "DAMON gave no answer"
    assert sets.activity("other").estimate is None
    sets.forget("vm")  # it has ended, and the next of its name begins anew
    assert sets.activity("vm").estimate is None
    assert sets.error("vm") != "DAMON gave no answer"
    sets.close()


def test_the_idle_bitmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bitmap in a file: marked frames stay idle but for those a toucher clears meanwhile."""
    bitmap = tmp_path / "bitmap"
    bitmap.write_bytes(bytes(64))
    idle = IdlePages(bitmap)

    class Meanwhile(threading.Event):
        """What happens while it waits."""

        def wait(self, timeout: float | None = None) -> bool:
            words = np.frombuffer(bitmap.read_bytes(), np.uint64).tolist()
            assert words[:4] == [1 << 3, 1 << 0 | 1 << 6, 0, 1 << 8]
            with bitmap.open("r+b") as file:
                file.seek(8)
                file.write((1 << 6).to_bytes(8, "little"))  # frame 64 is touched
            return False

    monkeypatch.setattr(idle, "_interrupted", Meanwhile())
    assert idle.touched([3, 64, 70, 200], 1.0) == {3: False, 64: True, 70: False, 200: False}
    with pytest.raises(KernelFeatureMissing, match="CONFIG_IDLE_PAGE_TRACKING"):
        IdlePages(tmp_path / "absent")


@pytest.fixture
def admin(tmp_path: Path) -> Path:
    """DAMON's sysfs tree, as plain files: nothing grows there when a number is written."""
    admin = tmp_path / "admin"
    context = admin / "kdamonds" / "0" / "contexts" / "0"
    for directory in (
        "monitoring_attrs/intervals", "monitoring_attrs/nr_regions", "targets/0/regions",
        "schemes/0/tried_regions", "schemes/0/access_pattern/sz",
        "schemes/0/access_pattern/nr_accesses", "schemes/0/access_pattern/age",
    ):  # fmt: skip
        (context / directory).mkdir(parents=True)
    for number in range(3):
        (context / "targets/0/regions" / str(number)).mkdir()
    (admin / "kdamonds" / "nr_kdamonds").write_text("0\n")
    (context / "avail_operations").write_text("vaddr\npaddr\n")
    for number, (start, end, accesses) in enumerate([(5, 6, 2), (9, 10, 0), (40, 42, 1)]):
        region = context / "schemes/0/tried_regions" / str(number)
        region.mkdir()
        (region / "start").write_text(str(start << 12))
        (region / "end").write_text(str(end << 12))
        (region / "nr_accesses").write_text(str(accesses))
    return admin


def test_damon_is_set_up_asked_and_given_back(admin: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    context = admin / "kdamonds" / "0" / "contexts" / "0"
    with Damon(admin, note) as damon:
        assert json.loads(note.read_text())["pid"] == os.getpid()
        assert damon.touched([9, 5, 40], 1.0) == {5: True, 9: False, 40: True}
        assert (context / "operations").read_text() == "paddr"
        assert (context / "targets/0/regions/nr_regions").read_text() == "3"
        assert (context / "targets/0/regions/2/start").read_text() == str(40 << 12)
        assert (context / "monitoring_attrs/intervals/sample_us").read_text() == "100000"
        assert (admin / "kdamonds/0/state").read_text() == "off"
        with pytest.raises(DamonBusy, match=r"used by memvirt already \(process"):
            Damon(admin, note)
    assert (admin / "kdamonds/nr_kdamonds").read_text() == "0"
    assert not note.exists()


def test_damon_is_not_taken_from_others(admin: Path, tmp_path: Path) -> None:
    (admin / "kdamonds/nr_kdamonds").write_text("1\n")
    with pytest.raises(DamonBusy, match="memvirt does not take it away"):
        Damon(admin, tmp_path / "note")
    assert (admin / "kdamonds/nr_kdamonds").read_text() == "1\n"
    assert not (tmp_path / "note").exists()


def test_damon_of_a_memvirt_that_was_killed_is_given_back(admin: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text(json.dumps({"pid": 1 << 22 | 1}))
    (admin / "kdamonds/nr_kdamonds").write_text("1\n")
    update = admin / "kdamonds/0/contexts/0/monitoring_attrs/intervals/update_us"
    update.write_text("1000000000\n")
    Damon(admin, note).close()
    assert (admin / "kdamonds/nr_kdamonds").read_text() == "0"
    assert not note.exists()
    # But not if somebody else has taken it since.
    note.write_text(json.dumps({"pid": 1 << 22 | 1}))
    (admin / "kdamonds/nr_kdamonds").write_text("1\n")
    update.write_text("60000000\n")
    with pytest.raises(DamonBusy, match="memvirt does not take it away"):
        Damon(admin, note)
    assert (admin / "kdamonds/nr_kdamonds").read_text() == "1\n"


def test_waiting_for_damon_can_be_interrupted(admin: Path, tmp_path: Path) -> None:
    damon = Damon(admin, tmp_path / "note")
    errors: list[LiveError] = []

    def watch() -> None:
        try:
            damon.touched([5], 10_000)
        except LiveError as error:
            errors.append(error)

    watching = threading.Thread(target=watch)
    watching.start()
    state = admin / "kdamonds/0/state"
    until(lambda: state.exists() and state.read_text() == "on", "DAMON to be on", SECONDS)
    damon.close()
    watching.join(60)
    assert "interrupted" in str(errors[0])
    assert (admin / "kdamonds/nr_kdamonds").read_text() == "0"


def test_a_kernel_without_damon(tmp_path: Path) -> None:
    assert "CONFIG_DAMON_SYSFS" in damon_problem(tmp_path / "absent")
    with pytest.raises(KernelFeatureMissing):
        Damon(tmp_path / "absent", tmp_path / "note")
