# SPDX-License-Identifier: Apache-2.0
"""A stock QEMU paged from outside, its guest verifying memory and disks all the while."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memvirt.live.errors import LiveError
from memvirt.live.pager.attachment import Role, RoleLock, all_attachments
from memvirt.live.pager.evictor import Pace
from memvirt.live.pager.latency import percentile
from memvirt.live.pager.page_states import PageState, Word
from memvirt.live.pager.session import StoreOptions
from memvirt.live.pager.supervisor import Policy
from memvirt.live.pager.victims import Goal
from tests.waiting import until

from .qemu_guest import PagerProcess, VerifyingVm

StartVm = Callable[..., VerifyingVm]
StartPager = Callable[..., PagerProcess]
pytestmark = pytest.mark.acceptance  # real QEMU, real time: they need a machine to themselves


@pytest.fixture(scope="module", autouse=True)
def patience() -> None:
    """Not here: monitors do hang while the pager is dead, and the pager's own limits count."""


TIGHT = Policy(Goal(target=40 << 20), Pace(batch=64))


def test_guest_runs_verified_while_most_of_its_memory_is_out_and_detach_leaves_nothing(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path, runtime: Path
) -> None:
    vm = start_vm()
    pager = start_pager(vm, TIGHT)
    pager.wait_for_evictions(20_000, 300)
    vm.wait_for_progress()
    assert pager.table.count(PageState.STORED) > 5_000
    assert pager.word(Word.RESTORED) > 1000
    assert percentile(list(pager.table.histogram), 0.5) is not None
    assert pager.word(Word.DRAINS) > 0
    pager.detach()
    vm.wait_for_progress()
    vm.assert_nothing_wrong()
    assert not any("userfaultfd" in link for link in vm.open_files())
    assert not list((tmp_path / "store").iterdir())
    assert not runtime.exists()
    with vm.monitor() as monitor:
        assert monitor.execute("query-status")["status"] == "running"


def test_nothing_is_lost_when_a_process_is_killed_at_any_step_of_an_eviction(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path
) -> None:
    vm = start_vm()
    order = tmp_path / "order"
    policy = Policy(Goal(target=60 << 20), Pace(batch=64), on_step=_KillAsOrdered(order))
    pager = start_pager(vm, policy)
    for step in ("begin", "protect", "drain", "store", "commit"):
        for dying in (Role.EVICTOR, Role.HANDLER):
            told = pager.text().count(f"the {dying.value} ended (signal 9)")
            pager.wait_for_evictions(100)
            order.write_text(f"{step} {dying.value}")
            until(lambda: not order.exists(), f"{dying} dies at {step}: {pager.text()}", 90)
            pager.wait_for_evictions(100)
            assert pager.text().count(f"the {dying.value} ended (signal 9)") > told
    vm.wait_for_progress()
    pager.detach()
    vm.wait_for_progress()
    vm.assert_nothing_wrong()


class _KillAsOrdered:
    """In the evictor: kills a process of the pager at the step that a file names, once."""

    def __init__(self, order: Path) -> None:
        self._order = order

    def __call__(self, step: str) -> None:
        try:
            wanted, dying = self._order.read_text().split()
        except (FileNotFoundError, ValueError):
            return
        if step != wanted:
            return
        self._order.unlink()
        victim = os.getpid()
        if dying == Role.HANDLER.value:
            holder = RoleLock(all_attachments()[0], Role.HANDLER).holder()
            assert holder is not None
            victim = holder
        os.kill(victim, signal.SIGKILL)


def _churn(
    vm: VerifyingVm, pager: PagerProcess, seconds: float, *, kill_everything: bool
) -> tuple[int, int]:
    """Random deaths and balloon changes for a while; how many of each."""
    choose = random.Random(1)
    end = time.monotonic() + seconds
    deaths = balloons = 0
    while time.monotonic() < end:
        time.sleep(choose.uniform(0.05, 0.5))
        assert not pager.ended(), pager.text()
        if kill_everything and choose.random() < 0.2:
            deaths += pager.kill_role(choose.choice([Role.HANDLER, Role.EVICTOR]))
        balloons += _set_balloon(vm, choose.choice([150, 170, 192]))
    return deaths, balloons


def _set_balloon(vm: VerifyingVm, mebibytes: int) -> bool:
    """False if QEMU's main thread waits in a fault that nobody answers just now."""
    try:
        with vm.monitor() as monitor:
            monitor.execute("balloon", {"value": mebibytes << 20})
    except LiveError:
        return False
    return True


def _storm(
    start_vm: StartVm, start_pager: StartPager, seconds: float, *, kill_everything: bool
) -> None:
    # Small enough for the smallest balloon: the guest's kernel takes what it likes, too. Here it
    # does not clear the pages it gives to the balloon, so that stored ones are discarded.
    vm = start_vm(command_line="memory=40 churn=12 init_on_alloc=0")
    policy = Policy(Goal(target=40 << 20), Pace(batch=64, pages_per_second=20_000))
    pager = start_pager(vm, policy)
    pager.wait_for_evictions(10_000)
    deaths, balloons = _churn(vm, pager, seconds, kill_everything=kill_everything)
    assert balloons > 0
    assert not kill_everything or deaths > 0
    assert pager.word(Word.DISCARDS) > 0
    until(lambda: _set_balloon(vm, 192), f"QEMU answers; its threads: {vm.threads()}", 120)
    vm.wait_for_progress(seconds=120)
    print(
        f"evicted {pager.word(Word.EVICTED)}, restored {pager.word(Word.RESTORED)}, "
        f"deaths {deaths}, balloon changes {balloons}, discarded {pager.word(Word.DISCARDED)}, "
        f"results {vm.results()}"
    )
    pager.detach(120)
    vm.wait_for_progress(seconds=120)
    vm.assert_nothing_wrong()


def test_balloon_and_free_page_reporting_while_paged(
    start_vm: StartVm, start_pager: StartPager
) -> None:
    _storm(start_vm, start_pager, 10, kill_everything=False)


def test_random_deaths_while_the_balloon_moves(start_vm: StartVm, start_pager: StartPager) -> None:
    _storm(start_vm, start_pager, 15, kill_everything=True)


@pytest.mark.acceptance
def test_minutes_of_paging_with_deaths_and_a_moving_balloon(
    start_vm: StartVm, start_pager: StartPager
) -> None:
    _storm(start_vm, start_pager, 240, kill_everything=True)


def test_another_pager_goes_on_after_all_of_the_first_was_killed(
    start_vm: StartVm, start_pager: StartPager
) -> None:
    vm = start_vm()
    first = start_pager(vm, TIGHT)
    first.wait_for_evictions(20_000)
    first.kill()
    stored = first.table.count(PageState.STORED)
    assert stored > 0
    second = start_pager(vm, TIGHT, again=True)
    second.wait_for_evictions(500)
    vm.wait_for_progress()
    second.detach()
    vm.wait_for_progress()
    vm.assert_nothing_wrong()


def test_handler_alone_serves_when_its_supervisor_is_killed(
    start_vm: StartVm, start_pager: StartPager
) -> None:
    vm = start_vm()
    pager = start_pager(vm, TIGHT)
    pager.wait_for_evictions(20_000)
    assert pager.kill_role(Role.SUPERVISOR)
    until(lambda: pager.role(Role.EVICTOR) is None, "the evictor leaves without its supervisor")
    vm.wait_for_progress()
    start_pager(vm, TIGHT, again=True).detach()
    vm.wait_for_progress()
    vm.assert_nothing_wrong()


def test_nothing_is_left_when_qemu_is_killed(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path, runtime: Path
) -> None:
    vm = start_vm()
    pager = start_pager(vm, TIGHT)
    pager.wait_for_evictions(10_000)
    vm.kill()
    until(pager.ended, f"the pager notices: {pager.text()}")
    assert pager.status == 0
    assert "the VM ended" in pager.text()
    assert not list((tmp_path / "store").iterdir())
    assert not runtime.exists()


def test_what_a_killed_pager_of_a_killed_vm_left_is_swept_by_the_next(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path
) -> None:
    vm = start_vm(disks=False)
    pager = start_pager(vm, TIGHT)
    pager.wait_for_evictions(5000)
    pager.kill()
    vm.kill()
    assert pager.directory.exists()
    other = start_vm(disks=False)
    start_pager(other, TIGHT).detach()
    assert not list((tmp_path / "store").iterdir())


def test_a_full_store_stops_evictions_and_loses_nothing(
    start_vm: StartVm, start_pager: StartPager, small_disk: Path
) -> None:
    vm = start_vm()
    pager = start_pager(vm, TIGHT, store=StoreOptions(small_disk / "store"))
    until(
        lambda: pager.word(Word.STORE_FAILURES) > 0, f"the disk is full: {pager.table.message}", 90
    )
    assert "No space left" in pager.table.message
    vm.wait_for_progress()
    pager.detach()
    vm.wait_for_progress()
    vm.assert_nothing_wrong()


def test_a_store_keeps_its_limit(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path
) -> None:
    vm = start_vm(disks=False)
    limit = 8 << 20
    pager = start_pager(vm, TIGHT, store=StoreOptions(tmp_path / "store", limit=limit))
    until(lambda: pager.word(Word.STORE_FAILURES) > 0, "the limit is reached", 90)
    blocks = sum(path.stat().st_blocks for path in pager.directory.parent.glob("blocks-*"))
    assert blocks * 512 <= limit + (1 << 20)
    pager.detach()
    vm.wait_for_progress(("memory", "churn"))
    vm.assert_nothing_wrong()


def test_a_damaged_copy_stops_the_vm_with_a_reason(
    start_vm: StartVm, start_pager: StartPager
) -> None:
    vm = start_vm(disks=False)
    pager = start_pager(vm, TIGHT)
    pager.wait_for_evictions(20_000)
    saved = _damage_all_blocks(pager)
    until(lambda: pager.word(Word.DAMAGED) > 0, "a damaged page is met")
    assert "is not what was written" in pager.table.message

    until(lambda: _state_of(vm.pid) == "T", "the VM is stopped")
    # The copies come back (an I/O error that goes): so do the pages, and nothing was lost.
    for path, content in saved.items():
        _repair(path, content)
    until(lambda: pager.word(Word.DAMAGED) == 0, "the pages come back")
    vm.wait_for_progress(("memory", "churn"))
    pager.detach()
    vm.wait_for_progress(("memory", "churn"))
    vm.assert_nothing_wrong()


_DAMAGE = b"\xa5" * 1024


def _damage_all_blocks(pager: PagerProcess) -> dict[Path, bytes]:
    """Overwrite the store; what was there. The evictor stands still meanwhile."""
    evictor = pager.role(Role.EVICTOR)
    assert evictor is not None
    os.kill(evictor, signal.SIGSTOP)
    until(lambda: _state_of(evictor) == "T", "the evictor stands still")
    saved = {path: path.read_bytes() for path in pager.directory.parent.glob("blocks-*")}
    for path, content in saved.items():
        with path.open("r+b") as file:
            file.write(_DAMAGE * (len(content) // len(_DAMAGE)))
    os.kill(evictor, signal.SIGCONT)
    return saved


def _repair(path: Path, content: bytes) -> None:
    """Put back what is damaged still: an evictor may have written other blocks since."""
    with path.open("r+b") as file:
        for at in range(0, len(content), len(_DAMAGE)):
            file.seek(at)
            if file.read(len(_DAMAGE)) == _DAMAGE:
                file.seek(at)
                file.write(content[at : at + len(_DAMAGE)])


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_vms_of_one_salt_keep_equal_pages_once(
    start_vm: StartVm, start_pager: StartPager, tmp_path: Path
) -> None:
    store = StoreOptions(tmp_path / "store", salt="one owner")
    vms = [start_vm(disks=False, command_line="memory=48") for _ in range(2)]
    pagers = [start_pager(vm, TIGHT, store=store) for vm in vms]
    for pager in pagers:
        pager.wait_for_evictions(20_000)
    assert len(list((tmp_path / "store").glob("*/blocks-4096"))) == 1
    assert pagers[1].word(Word.SHARED) > 2000
    for vm in vms:
        vm.wait_for_progress(("memory",))
    pagers[0].detach()
    vms[1].wait_for_progress(("memory",))
    pagers[1].detach()
    for vm in vms:
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()
    assert not list((tmp_path / "store").iterdir())


def test_a_migration_makes_the_pager_leave(start_vm: StartVm, start_pager: StartPager) -> None:
    vm = start_vm(disks=False)
    pager = start_pager(vm, Policy(Goal(target=40 << 20), Pace(batch=64, pages_per_second=2000)))
    pager.wait_for_evictions(2000)

    def asked() -> bool:
        try:
            with vm.monitor() as monitor:
                capability = {"capability": "postcopy-ram", "state": True}
                monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
                return True
        except LiveError:
            return False

    until(asked, "the capability is set")
    until(pager.ended, f"the pager leaves: {pager.text()}")
    assert "postcopy migration is switched on" in pager.text()
    vm.wait_for_progress(("memory", "churn"))
    vm.assert_nothing_wrong()
