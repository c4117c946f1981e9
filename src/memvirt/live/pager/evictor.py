# SPDX-License-Identifier: Apache-2.0
"""The evictor: the process that chooses victims, packs them and puts them into the store.

It changes no page state (``page_states.py``). An eviction that fails at any point before the commit
is given up: the pages stay where they are, writable again. It also watches the VM's monitor, for it
is the only process of the pager that talks to it: a migration that begins makes the pager leave.
A page that cannot be read back makes it stop the VM's process (SIGSTOP: QEMU's own ``stop`` waits
for the very thread that waits for the page), until the page can be read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memvirt.address import PAGE_BYTES
from memvirt.live.errors import LiveError

from .channel import HandlerChanged, NoAnswer, Request, Requester, Runs
from .page_states import Leave, PageState, PageTableFile, Stopped, Word
from .paged_memory import VirtualMachineMemory
from .store import PageStore, StoreError
from .userfaultfd import EventPending, ProcessGone, UserFaultFdError
from .victims import VictimSelection

BATCH_PAGES = 256
_LEAST_BATCH = 16
_IDLE_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_BACK_OFF_SECONDS = 1.0
_PROTECT_SECONDS = 1.0
_RETRY_SECONDS = 0.0002


class NotNow(Exception):
    """Nothing may be evicted at present; the message says why."""


class Supervision(Protocol):
    """What the evictor needs of the VM's monitor; ``qemu.py`` has QEMU's."""

    def drain(self) -> None:
        """Return when no device has I/O in flight that began before the call.

        The VM goes on, or stays stopped if it was. Raises NotNow or LiveError.
        """

    def migrating(self) -> str:
        """Why paging must end (a migration, a device that was plugged in), or ""."""

    def close(self) -> None:
        """Give the monitor back: others may want it."""


@dataclass(frozen=True)
class Pace:
    """Limits of the evictor. ``pages_per_second`` None: as fast as it goes."""

    batch: int = BATCH_PAGES
    pages_per_second: float | None = None


class Evictor:
    """Evicts until it is told to stop.

    ``pid`` is the VM's process. ``resident_target`` bytes may stay in memory (None: no limit).
    ``on_step`` is called with the name of each step of an eviction as it is reached; tests use it
    to die there.
    """

    def __init__(
        self,
        pid: int,
        table: PageTableFile,
        memory: VirtualMachineMemory,
        store: PageStore,
        requester: Requester,
        supervision: Supervision,
        victims: VictimSelection,
        resident_target: int | None,
        pace: Pace,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._pid = pid
        self._table = table
        self._memory = memory
        self._store = store
        self._requester = requester
        self._supervision = supervision
        self._victims = victims
        self._target = resident_target
        self._pace = pace
        self._on_step = on_step
        self._stopping = False
        self._parent = os.getppid()
        self._watched_at = 0.0
        self._begun_at = time.monotonic()
        self._evicted = 0

    def stop(self) -> None:
        """Ends ``run`` after the eviction under way."""
        self._stopping = True

    def _over(self) -> bool:
        return self._stopping or os.getppid() != self._parent

    def run(self) -> None:
        """Evict as the goal says until ``stop``, the VM's end, or the supervisor's death."""
        self._forget_unfinished()
        while not self._over():
            try:
                pause = self._turn()
            except HandlerChanged:
                pause = 0.0
            except NoAnswer:
                return
            except ProcessGone:
                return
            except (StoreError, LiveError, NotNow, OSError, UserFaultFdError) as error:
                if not isinstance(error, NotNow):
                    self._table.words[Word.STORE_FAILURES] += isinstance(error, StoreError)
                self._say(str(error))
                self._supervision.close()
                pause = _BACK_OFF_SECONDS
            self._sleep(pause)

    def _say(self, text: str) -> None:
        if not self._table.words[Word.DAMAGED]:
            self._table.message = text

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._over() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _IDLE_SECONDS))

    def _forget_unfinished(self) -> None:
        while not self._over():
            try:
                self._requester.ask(Request.RESET, [], self._over)
                return
            except HandlerChanged:
                continue
            except NoAnswer:
                return

    def _turn(self) -> float:
        """One look at everything, and one batch; seconds to pause."""
        now = time.monotonic()
        if now - self._watched_at >= _WATCH_SECONDS:
            self._watched_at = now
            self._watch()
        if self._table.words[Word.DAMAGED] or self._table.words[Word.LEAVE]:
            return _IDLE_SECONDS
        above = self._pages_above_target()
        most = max(min(self._pace.batch, above), _LEAST_BATCH) if above else self._pace.batch
        runs = self._victims.next_batch(most, forced=above > 0)
        if not runs:
            self._supervision.close()
            return _IDLE_SECONDS
        self._evicted += self.evict(runs)
        self._say("")
        limit = self._pace.pages_per_second
        if limit is None:
            return 0.0
        return max(self._begun_at + self._evicted / limit - time.monotonic(), 0.0)

    def _pages_above_target(self) -> int:
        if self._target is None:
            return 0
        return max(self._memory.resident_bytes() - self._target, 0) // PAGE_BYTES

    def _watch(self) -> None:
        words = self._table.words
        if words[Word.DAMAGED]:
            words[Word.STOPPED_BY_US] |= Stopped.DAMAGE
            os.kill(self._pid, signal.SIGSTOP)
            return
        continue_after_damage(self._table, self._pid)
        reason = self._supervision.migrating()
        if reason:
            self._table.message = reason
            words[Word.LEAVE] = Leave.MIGRATION

    def evict(self, runs: Runs) -> int:
        """Evict these pages as far as they stay untouched meanwhile; how many were.

        Raises StoreError, LiveError, NotNow and what the kernel refuses; then no page has left.
        """
        epoch = self._table.words[Word.EPOCH]
        accepted = self._requester.ask(Request.BEGIN, runs, self._over).runs
        self._on_step("begin")
        try:
            self._protect(accepted)
            self._on_step("protect")
            self._drain()
            self._on_step("drain")
            self._store_pages(accepted, epoch)
            self._on_step("store")
            answer = self._requester.ask(Request.COMMIT, accepted, self._over)
        except HandlerChanged:
            self._withdraw(accepted)
            raise
        except (NoAnswer, ProcessGone):
            raise
        except Exception:
            self._give_up(accepted)
            raise
        self._on_step("commit")
        self._victims.note_evicted(accepted)
        return answer.runs[0][1]

    def _protect(self, runs: Runs) -> None:
        deadline = time.monotonic() + _PROTECT_SECONDS
        for first, count in runs:
            while True:
                try:
                    self._memory.write_protect(first, count)
                    break
                except EventPending:
                    if time.monotonic() > deadline:
                        raise NotNow("the VM discards pages without a pause") from None
                    time.sleep(_RETRY_SECONDS)

    def _drain(self) -> None:
        begun = time.perf_counter_ns()
        self._supervision.drain()
        words = self._table.words
        words[Word.DRAINS] += 1
        words[Word.DRAIN_MICROSECONDS] += (time.perf_counter_ns() - begun) // 1000

    def _store_pages(self, runs: Runs, epoch: int) -> None:
        """Read, pack, store, and set the index entries."""
        store, words = self._store, self._table.words
        blocks = [store.pack(self._memory.read(first, count)) for first, count in runs]
        with store.locked():
            dropped = words[Word.RESTORED] + words[Word.DISCARDED]
            kept = self._table.count_stored()
            store.make_room(sum(map(len, blocks)), dropped, kept)
            entries = [store.put(part) for part in blocks]
            for (first, count), part in zip(runs, entries, strict=True):
                self._table.index[first : first + count] = part
        words[Word.SHARED] += store.shared
        store.shared = 0
        if words[Word.EPOCH] != epoch:
            raise HandlerChanged

    def _withdraw(self, runs: Runs) -> None:
        """Drop the entries set for pages that the new handler found resident."""
        for first, count in runs:
            resident = self._table.states[first : first + count] == PageState.RESIDENT
            self._table.index[first : first + count][resident] = 0

    def _give_up(self, runs: Runs) -> None:
        try:
            self._requester.ask(Request.ABORT, runs, self._over)
        except HandlerChanged:
            self._withdraw(runs)
        except NoAnswer:
            pass


def continue_after_damage(table: PageTableFile, pid: int) -> None:
    """Let a VM go on that was stopped because of damaged pages, if there are none any more."""
    words = table.words
    if words[Word.STOPPED_BY_US] & Stopped.DAMAGE and not words[Word.DAMAGED]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        words[Word.STOPPED_BY_US] &= ~Stopped.DAMAGE


def enter_evictor_process(evictor: Evictor) -> None:
    """Settings of an evictor's process: it yields to the fault handler, and stops at SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: evictor.stop())
    os.nice(5)
