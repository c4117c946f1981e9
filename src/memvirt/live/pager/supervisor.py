# SPDX-License-Identifier: Apache-2.0
"""The supervisor: starts fault handler and evictor of one VM, and the next one when one dies.

It forks them, holds a copy of the userfaultfd and both ends of their channel, and otherwise does
nothing that could make it die. It ends with a detach (SIGINT, SIGTERM, SIGHUP, or the evictor's
wish because of a migration) or with the VM.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.live.errors import LiveError
from memvirt.size import format_size

from .attachment import PagerError, Role, RoleLock
from .blocks import BlockReader
from .channel import Channel, HandlerChanged, NoAnswer, Request, Requester, channel_pair
from .evictor import Evictor, Pace, continue_after_damage, enter_evictor_process
from .fault_handler import Ending, FaultHandler, enter_handler_process
from .page_states import NOT_DETACHED, Leave, PageTableFile, Stopped, Word
from .session import Session
from .store import Entries, PageStore
from .transport import Transport
from .userfaultfd import UserFaultFd
from .victims import Goal, VictimSelection

_TURN_MILLISECONDS = 200
_EVICTOR_SECONDS = 15.0  # for its eviction under way, a monitor that hangs included
_SHORT_LIFE_SECONDS = 1.0  # a child that dies younger than that is not restarted at once
_SHORT_LIFE_PAUSE = 0.5


@dataclass(frozen=True)
class Policy:
    """What the evictor is to do. ``on_step`` is for tests (see ``Evictor``)."""

    goal: Goal = field(default_factory=Goal)
    pace: Pace = field(default_factory=Pace)
    seed: int = 0
    on_step: Callable[[str], None] = lambda step: None


@dataclass
class _Child:
    """One process of the pager. ``pidfd`` is -1 while it does not run."""

    role: Role
    pid: int = 0
    pidfd: int = -1
    started: float = 0.0
    not_before: float = 0.0


class Supervisor:
    """Pages one VM until it is detached or ends.

    ``say`` gets lines for the user, ``turn`` is called several times a second (for a status line).
    The caller holds the supervisor's lock of the session.
    """

    def __init__(
        self,
        session: Session,
        transport: Transport,
        policy: Policy,
        say: Callable[[str], None],
        turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._transport = transport
        self._policy = policy
        self._say = say
        self._turn = turn
        self._handler_end, self._evictor_end = channel_pair()
        self._handler = _Child(Role.HANDLER)
        self._evictor = _Child(Role.EVICTOR)
        self._leave = ""  # why we detach
        self._asked = 0  # how often a user wanted it
        self._process = os.pidfd_open(session.record.pid)
        self.handler_restarts = 0

    # Children ----------------------------------------------------------------------------------

    def _fork(self, child: _Child, body: Callable[[], int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # The lock ends with this process, and tells a later pager whom to end.
                RoleLock(self._session.directory, child.role).acquire()
                status = body()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        child.pid, child.pidfd, child.started = pid, os.pidfd_open(pid), time.monotonic()

    def _start_handler(self) -> None:
        self._fork(self._handler, self._handler_body)

    def _handler_body(self) -> int:
        enter_handler_process()
        session = self._session
        self._evictor_end.close()
        faults = UserFaultFd(session.faults.descriptor)
        copies = BlockReader(session.store_directory, session.memory_file)
        handler = FaultHandler(
            session.table, session.memory, faults, copies, Channel(self._handler_end), self._process
        )
        return int(handler.run())

    def _start_evictor(self) -> None:
        if self._session.memory.evictable and not self._leave:
            self._fork(self._evictor, self._evictor_body)

    def _evictor_body(self) -> int:
        session, policy = self._session, self._policy
        self._handler_end.close()
        table, record = session.table, session.record
        indices = OtherIndices(session)
        store = PageStore(session.store_directory, record.codec, record.store_limit, indices)
        supervision = self._transport.supervision(table)
        evictor = Evictor(
            record.pid,
            table,
            session.memory,
            store,
            Requester(Channel(self._evictor_end), table),
            supervision,
            VictimSelection(table, session.memory, policy.goal, policy.seed),
            policy.goal.target,
            policy.pace,
            policy.on_step,
        )
        enter_evictor_process(evictor)
        evictor.run()
        supervision.close()
        return 0

    def _reap(self, child: _Child) -> int:
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        child.pidfd = -1
        now = time.monotonic()
        if now - child.started < _SHORT_LIFE_SECONDS:
            child.not_before = now + _SHORT_LIFE_PAUSE
        return os.waitstatus_to_exitcode(status)

    # The loop ----------------------------------------------------------------------------------

    def run(self) -> bool:
        """True after a detach, False if the VM ended. Nothing of it is left on disk then."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        previous_fd = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._start_first_handler()
            self._transport.serving()
            self._start_evictor()
            return self._supervise(wake_read)
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, action in before.items():
                signal.signal(number, action)
            os.close(wake_read)
            os.close(wake_write)

    def _start_first_handler(self) -> None:
        """Returns when it has taken over (the epoch has moved), or has ended again."""
        epoch = self._session.table.words[Word.EPOCH]
        self._start_handler()
        poll = select.poll()
        poll.register(self._handler.pidfd, select.POLLIN)
        while self._session.table.words[Word.EPOCH] == epoch and not poll.poll(2):
            pass

    def _on_signal(self, number: int, frame: object) -> None:
        self.leave(signal.Signals(number).name)

    def leave(self, why: str) -> None:
        """Detach as soon as ``run`` gets to it."""
        self._leave = why
        self._asked += 1

    def _supervise(self, wake: int) -> bool:
        while True:
            if self._gone(wake):
                return self._vm_ended()
            self._restart_dead()
            words = self._session.table.words
            if words[Word.LEAVE] and not self._leave:
                self._leave = self._session.table.message or Leave(words[Word.LEAVE]).name.lower()
            if self._leave and self._detach():
                return True
            self._turn()

    def _gone(self, wake: int) -> bool:
        """Wait a moment for anything to happen; True if the VM's process has ended."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._process, select.POLLIN)
        for child in (self._handler, self._evictor):
            if child.pidfd >= 0:
                poll.register(child.pidfd, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_TURN_MILLISECONDS)}
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        for child in (self._handler, self._evictor):
            if child.pidfd in ready:
                status = self._reap(child)
                if child is self._handler and status == Ending.PROCESS_GONE and self._vm_gone(5000):
                    return True
                if not self._leave or child is self._handler:
                    self._say(f"the {child.role.value} ended ({_ending(status)}); the next starts")
        return self._process in ready

    def _restart_dead(self) -> None:
        now = time.monotonic()
        if self._handler.pidfd < 0 and now >= self._handler.not_before:
            self.handler_restarts += 1
            self._start_handler()
        if self._evictor.pidfd < 0 and now >= self._evictor.not_before:
            self._start_evictor()

    # Endings -----------------------------------------------------------------------------------

    def _end_evictor(self) -> None:
        if self._evictor.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._evictor.pid, signal.SIGTERM)
        poll = select.poll()
        poll.register(self._evictor.pidfd, select.POLLIN)
        deadline = time.monotonic() + _EVICTOR_SECONDS
        while not poll.poll(50):
            # It may wait for an answer of a handler that has died.
            if self._handler_died():
                self._start_handler()
            if time.monotonic() > deadline:
                os.kill(self._evictor.pid, signal.SIGKILL)
        self._reap(self._evictor)

    def _handler_died(self) -> bool:
        poll = select.poll()
        poll.register(self._handler.pidfd, select.POLLIN)
        if not poll.poll(0):
            return False
        self._reap(self._handler)
        return True

    def _detach(self) -> bool:
        """Bring every page back and leave; False if that is not possible: paging goes on."""
        why, table = self._leave, self._session.table
        needed, available = table.count_stored() * PAGE_BYTES, available_memory()
        if needed > available and self._asked == 1:
            return self._stay(
                f"{NOT_DETACHED}{format_size(needed)} must come back and {format_size(available)} "
                "are available; make room, or ask once more to do it nevertheless"
            )
        self._end_evictor()
        self._say(f"detaching ({why}): bringing {table.count_stored()} pages back")
        requester = Requester(Channel(self._evictor_end), table)
        while True:
            try:
                requester.ask(Request.RESET, [], self._cannot_go_on)
                answer = requester.ask(Request.DETACH, [], self._cannot_go_on)
                break
            except HandlerChanged:
                continue
            except NoAnswer:
                if self._vm_gone():
                    self._leave = ""
                    return False  # the loop sees it as well
        if answer.request is Request.FAILED:
            return self._stay(table.message)
        self._reap(self._handler)
        self._continue_stopped_vm()
        with contextlib.suppress(PagerError):
            self._transport.close_remote(self._session.record.descriptor)
        self._close()
        self._session.end()
        return True

    def _stay(self, why: str) -> bool:
        """Go on paging. A ``memvirt page --detach`` that waits reads the reason from the table."""
        self._session.table.message = why
        self._say(why)
        self._leave = ""
        self._session.table.words[Word.LEAVE] = Leave.NO
        return False

    def _cannot_go_on(self) -> bool:
        """While waiting for the handler: replace it if it died; True if the VM has ended."""
        self._turn()
        if self._vm_gone():
            return True
        if self._handler_died():
            self._start_handler()
        return False

    def _vm_gone(self, milliseconds: int = 0) -> bool:
        """True if the VM's process has ended, or does so in time: its memory goes first."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def _continue_stopped_vm(self) -> None:
        """If the evictor was killed in the middle of a drain the VM still stands."""
        table = self._session.table
        continue_after_damage(table, self._session.record.pid)
        if not table.words[Word.STOPPED_BY_US] & Stopped.DRAIN:
            return
        supervision = self._transport.supervision(table)
        try:
            supervision.migrating()
        except LiveError as error:
            self._say(f"the VM may have been left stopped by us: {error}; continue it yourself")
        finally:
            supervision.close()

    def _vm_ended(self) -> bool:
        for child in (self._evictor, self._handler):
            if child.pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                self._reap(child)
        self._close()
        self._session.end()
        return False

    def _close(self) -> None:
        self._handler_end.close()
        self._evictor_end.close()
        os.close(self._process)


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def available_memory() -> int:
    """Bytes that the host can give without swapping (MemAvailable, proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise PagerError("/proc/meminfo: no MemAvailable (Linux 3.14 has it)")


class OtherIndices:
    """The index arrays of all VMs of a store, for collections."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tables: dict[str, PageTableFile] = {}

    def __call__(self) -> list[Entries]:
        found: list[Entries] = []
        for path in self._session.store_directory.glob("*/pages"):
            if path.parent == self._session.directory:
                table = self._session.table
            else:
                try:
                    table = self._tables.get(str(path)) or PageTableFile(path)
                except (OSError, ValueError):
                    continue  # removed meanwhile, or not made yet: it names no block
                self._tables[str(path)] = table
            # A copy: entries may be dropped under our hands, and then they just free less.
            found.append(np.array(table.index))
        return found
