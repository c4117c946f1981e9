# SPDX-License-Identifier: Apache-2.0
"""Userfaultfds that a VMM hands over: Firecracker's and Cloud Hypervisor's formats."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memvirt.live.pager.attachment import PagerError, Role, RoleLock, find_attachment
from memvirt.live.pager.handoff import (
    Dialect,
    HandOffTransport,
    listen,
    parse_hand_off,
    receive_hand_off,
)
from memvirt.live.pager.page_states import PageState, PageTableFile, Word
from memvirt.live.pager.session import StoreOptions, attach, resume
from memvirt.live.pager.supervisor import Policy, Supervisor
from memvirt.live.pager.victims import Goal
from tests.waiting import until

from .kvm_guest import FIRST_DATA_PAGE

PAGES = 512
PAGE = 4096
TOY = Path(__file__).with_name("toy_vmm.py")


class Toy:
    """The toy VMM's process."""

    def __init__(self, dialect: str, path: Path) -> None:
        arguments = [sys.executable, "-S", str(TOY), dialect, str(path), str(PAGES)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def answer(self, seconds: float = 180.0) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, "the toy VMM does not answer"
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class ListeningPager:
    """A supervisor in a process of its own, that waits for a hand-off at ``path``."""

    def __init__(
        self, path: Path, store: Path, goal: Goal, memory_file: Path | None = None
    ) -> None:
        server = listen(path)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = _serve(server, store, goal, memory_file)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        server.close()
        self._path = path
        self.ended = False

    def kill(self, toy: Toy) -> None:
        """All of it, as by kill -9."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True
        directory = find_attachment(toy.pid)
        for role in (Role.EVICTOR, Role.HANDLER):
            while directory is not None and (pid := _holder(directory, role)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)

    def detach(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        _, status = os.waitpid(self.pid, 0)
        self.ended = True
        assert os.waitstatus_to_exitcode(status) == 0


def _holder(directory: Path, role: Role) -> int | None:
    lock = RoleLock(directory, role)
    try:
        return lock.holder()
    finally:
        lock.release()


def _serve(server: socket.socket, store: Path, goal: Goal, memory_file: Path | None) -> int:
    connection, _ = server.accept()
    transport = HandOffTransport.accepted(connection, no_direct_io=True)
    known = find_attachment(transport.pid)
    if known is not None:
        session = resume(known, transport)
    else:
        session = attach(transport, StoreOptions(store), memory_file)
    lock = RoleLock(session.directory, Role.SUPERVISOR)
    assert lock.acquire()

    def quiet(text: str) -> None:
        pass

    Supervisor(session, transport, Policy(goal), quiet, transport.take_messages).run()
    return 0


StartToy = Callable[[str, Goal, Path | None], tuple[Toy, ListeningPager]]


@pytest.fixture
def start(needs_userfaultfd: None, runtime: Path, tmp_path: Path) -> Iterator[StartToy]:
    things: list[tuple[Toy, ListeningPager]] = []

    def start(dialect: str, goal: Goal, memory_file: Path | None) -> tuple[Toy, ListeningPager]:
        path = tmp_path / f"socket{len(things)}"
        pager = ListeningPager(path, tmp_path / "store", goal, memory_file)
        toy = Toy(dialect, path)
        things.append((toy, pager))
        assert toy.answer() == "ready"
        return toy, pager

    yield start
    for toy, pager in things:
        pager.kill(toy)
        toy.end()


def _table(toy: Toy) -> PageTableFile:
    until(lambda: find_attachment(toy.pid) is not None, "the VM is attached")
    directory = find_attachment(toy.pid)
    assert directory is not None
    return PageTableFile(directory / "pages")


def _memory_file(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    words = [struct.pack("<Q", page * 7 + 1).ljust(PAGE, b"\xee") for page in range(PAGES)]
    path.write_bytes(b"".join(words))
    return path


EXPECTED_SUM = sum(page * 7 + 1 for page in range(PAGES))


def test_firecracker_restores_from_its_memory_file_and_sees_zeros_after_a_discard(
    start: StartToy, tmp_path: Path
) -> None:
    toy, pager = start("firecracker", Goal(), _memory_file(tmp_path))
    assert toy.ask("read 5") == "36"
    assert toy.ask("discard 5 3") == "ok"
    assert [toy.ask(f"read {page}") for page in (4, 5, 6, 7, 8)] == ["29", "0", "0", "0", "57"]
    assert toy.ask("discard 100 50") == "ok"
    lost = sum(page * 7 + 1 for page in (5, 6, 7, *range(100, 150)))
    assert toy.ask("sum") == str(EXPECTED_SUM - lost)
    assert toy.ask("write 6 99") == "ok"
    pager.detach()
    assert toy.ask("sum") == str(EXPECTED_SUM - lost + 99)


def test_firecracker_waits_while_the_pager_is_dead_and_goes_on_with_the_next(
    start: StartToy, tmp_path: Path
) -> None:
    toy, _ = start("firecracker", Goal(), _memory_file(tmp_path))
    assert toy.ask("read 5") == "36"
    directory = find_attachment(toy.pid)
    assert directory is not None
    handler = _holder(directory, Role.HANDLER)
    assert handler is not None
    os.kill(handler, signal.SIGKILL)
    assert toy.ask("sum") == str(EXPECTED_SUM)
    assert _holder(directory, Role.HANDLER) not in (None, handler)


def test_cloud_hypervisor_is_evicted_restarted_and_detached(
    start: StartToy, tmp_path: Path
) -> None:
    toy, pager = start("cloud-hypervisor", Goal(target=64 << 10), None)
    table = _table(toy)
    until(lambda: table.count(PageState.STORED) > PAGES - 64, f"evicted: {table.message}")
    assert toy.ask("sum") == str(EXPECTED_SUM)
    assert toy.ask("write 9 1000") == "ok"
    until(lambda: table.count(PageState.STORED) > PAGES - 64, "evicted again")
    pager.kill(toy)
    toy.tell("sum")
    assert not select.select([toy.process.stdout], [], [], 0.3)[0], "zeros instead of waiting"
    # The toy's only thread waits in the fault, so it cannot hand over again: the next pager takes
    # the descriptor from its process.
    directory = find_attachment(toy.pid)
    assert directory is not None
    session_pid = os.fork()
    if session_pid == 0:
        status = 1
        try:
            status = _resume_without_hand_off(directory)
        finally:
            os._exit(status)
    expected = str(EXPECTED_SUM - (9 * 7 + 1) + 1000)
    assert toy.answer() == expected
    assert toy.ask("sum") == expected
    os.kill(session_pid, signal.SIGTERM)
    _, status = os.waitpid(session_pid, 0)
    assert status == 0
    assert toy.ask("sum") == expected
    assert not directory.exists()


def _resume_without_hand_off(directory: Path) -> int:
    session = resume(directory)
    lock = RoleLock(directory, Role.SUPERVISOR)
    assert lock.acquire()
    transport = HandOffTransport.resumed(session.record.pid, no_direct_io=True)
    Supervisor(session, transport, Policy(), lambda text: None).run()
    return 0


def test_cloud_hypervisor_hands_the_same_descriptor_over_to_the_next_pager(
    start: StartToy, tmp_path: Path
) -> None:
    toy, pager = start("cloud-hypervisor", Goal(target=64 << 10), None)
    table = _table(toy)
    until(lambda: table.count(PageState.STORED) > PAGES - 64, f"evicted: {table.message}")
    pager.kill(toy)
    path = tmp_path / "socket0"
    path.unlink()
    again = ListeningPager(path, tmp_path / "store", Goal())
    try:
        assert toy.ask("hand-off") == "ok"
        assert toy.ask("sum") == str(EXPECTED_SUM)
        assert table.words[Word.RESTORED] >= PAGES - 64
        again.detach()
        assert toy.ask("sum") == str(EXPECTED_SUM)
    finally:
        again.kill(toy)


def test_cloud_hypervisor_adds_memory(start: StartToy) -> None:
    toy, _ = start("cloud-hypervisor", Goal(), None)
    assert toy.ask("add") == "0"


def test_a_kvm_guest_is_paged(start: StartToy) -> None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/kvm: {error.strerror}")
    toy, pager = start("cloud-hypervisor", Goal(target=64 << 10), None)
    table = _table(toy)
    assert toy.ask("kvm") == "ok"
    total = EXPECTED_SUM - sum(page * 7 + 1 for page in range(FIRST_DATA_PAGE))
    for _ in range(5):
        until(lambda: table.count(PageState.STORED) > PAGES - 64, f"evicted: {table.message}")
        assert toy.ask("run") == str(total)
        total += PAGES - FIRST_DATA_PAGE
    assert table.words[Word.RESTORED] > 4 * (PAGES - 64)
    pager.detach()
    assert toy.ask("run") == str(total)


# What is refused -------------------------------------------------------------------------------


def _firecracker(**changes: object) -> bytes:
    region = {"base_host_virt_addr": 0x7F0000000000, "size": 8192, "offset": 4096} | changes
    return json.dumps([region]).encode()


def test_all_versions_of_firecrackers_message_are_understood() -> None:
    for changes in ({}, {"page_size_kib": 4096}, {"page_size": 4096, "page_size_kib": 4096}):
        message = parse_hand_off(_firecracker(**changes))
        assert message is not None
        assert message.dialect is Dialect.FIRECRACKER
        assert message.regions[0].file_offset == 4096
        assert message.regions[0].pages == 2


@pytest.mark.parametrize("end", range(1, 90, 11))
def test_a_message_in_parts_is_awaited(end: int) -> None:
    assert parse_hand_off(_firecracker()[: min(end, len(_firecracker()) - 1)]) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_firecracker(size=4097), "not made of pages"),
        (_firecracker(size=0), "not made of pages"),
        (_firecracker(size="8192"), "without a proper size"),
        (_firecracker(offset=-4096), "without a proper offset"),
        (_firecracker(page_size=2 << 20), "2097152 bytes"),
        (b"[]", "no regions"),
        (b"[7]", "without a proper"),
        (b"\x0a\x00\x01\x00\x05\x00\x00\x00", "neither"),
        (b"GET / HTTP", "neither"),
        (struct.pack("<I", 2) + b"{}", "type None"),
        (struct.pack("<I", 3) + b"{a}", "not JSON"),
    ],
)
def test_what_is_no_hand_off_is_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(PagerError, match=says) as caught:
        parse_hand_off(data)
    assert "\n" not in str(caught.value)


def test_overlapping_regions_are_refused() -> None:
    one = json.loads(_firecracker())
    with pytest.raises(PagerError, match="overlap"):
        parse_hand_off(json.dumps(one + one).encode())


def test_a_descriptor_that_is_no_userfaultfd_is_refused_and_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", ours.fileno()))]
        theirs.sendmsg([_firecracker()], rights)
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(PagerError, match="0 userfaultfds"):
            receive_hand_off(ours)
        assert set(os.listdir("/proc/self/fd")) == before
