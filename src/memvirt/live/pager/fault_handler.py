# SPDX-License-Identifier: Apache-2.0
"""The fault handler: the one process that answers a paged VM's faults and changes page states.

Faults go first. Requests of the evictor are cut into pieces of a few pages (``_PIECE``), and after
each piece waiting faults are answered, so that a fault waits for one piece at most.

The process is forked from the supervisor, works on the same table as all handlers before it, and
begins by taking over (``page_states.py``). It outlives its supervisor: as long as it runs the VM
does. It ends when the VM's process has ended, or after a detach.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import time
from collections import deque
from collections.abc import Generator
from enum import IntEnum

import numpy as np

from memvirt.address import PAGE_BYTES, HostVirtualAddress

from .blocks import PageDamaged
from .channel import Channel, Packet, Request, Runs
from .latency import bucket
from .page_states import NOT_DETACHED, PageIndex, PageState, PageTableFile, Word
from .paged_memory import VirtualMachineMemory
from .transitions import CopyReader, PageStateMachine
from .userfaultfd import (
    EVENT_PAGE_FAULT,
    EVENT_REMOVE,
    FAULT_FLAG_WRITE_PROTECT,
    AlreadyPresent,
    EventPending,
    ProcessGone,
    UserFaultFd,
    UserFaultFdError,
)

_PIECE = 8  # pages of a request handled before faults are looked at again
_RETRY_SECONDS = 0.0002
_DAMAGED_SECONDS = 1.0


class Ending(IntEnum):
    """The exit status of a fault handler."""

    DETACHED = 0
    PROCESS_GONE = 3
    FAILED = 4


class FaultHandler:
    """Answers faults until the VM ends or is detached; see the head of the module.

    ``process`` is a pidfd of the VM's process.
    """

    def __init__(
        self,
        table: PageTableFile,
        memory: VirtualMachineMemory,
        faults: UserFaultFd,
        copies: CopyReader,
        channel: Channel,
        process: int,
    ) -> None:
        self._table = table
        self._memory = memory
        self._faults = faults
        self._machine = PageStateMachine(table, memory, copies)
        self._channel: Channel | None = channel
        self._process = process
        self._work: deque[Generator[None]] = deque()
        self._detached = False
        self._poll = select.poll()
        for descriptor in (faults.descriptor, channel.fileno(), process):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> Ending:
        """Take over, then serve."""
        try:
            self._take_over()
            return self._serve()
        except ProcessGone:
            return Ending.PROCESS_GONE

    def _take_over(self) -> None:
        self._machine.take_over()
        for change in (self._memory.allow_writes, self._memory.wake):
            while True:
                try:
                    change(PageIndex(0), self._memory.pages)
                    break
                except EventPending:
                    # Not a fault of ours: the discard that blocks the call must be read first.
                    while self._answer_one():
                        pass
                    time.sleep(_RETRY_SECONDS)
        self._machine.announce()

    def _serve(self) -> Ending:
        machine = self._machine
        damaged_at = time.monotonic()
        while not self._detached:
            while self._answer_one():
                pass
            if machine.waiting:
                machine.try_again()
            if self._work:
                self._do_piece()
                timeout = 0
            elif machine.waiting:
                timeout = 1
            else:
                timeout = 500
            ready = self._poll.poll(timeout)
            now = time.monotonic()
            machine.clock = int(now)
            if machine.damaged and now - damaged_at > _DAMAGED_SECONDS:
                damaged_at = now
                machine.try_damaged_again()
            for descriptor, _ in ready:
                if descriptor == self._process:
                    return Ending.PROCESS_GONE
                if self._channel is not None and descriptor == self._channel.fileno():
                    self._take_request()
        return Ending.DETACHED

    # Faults and discards -----------------------------------------------------------------------

    def _answer_one(self) -> bool:
        """Read and answer one message of the kernel; False if there is none."""
        begun = time.perf_counter_ns()
        event = self._faults.read()
        if event is None:
            return False
        if event.kind == EVENT_PAGE_FAULT:
            page = self._memory.page_at(HostVirtualAddress(event.second))
            if page is None:
                self._answer_unknown(HostVirtualAddress(event.second & -PAGE_BYTES))
                return True
            if event.first & FAULT_FLAG_WRITE_PROTECT:
                self._machine.write_fault(page)
            else:
                self._machine.missing(page)
                took = (time.perf_counter_ns() - begun) // 1000
                self._table.histogram[bucket(took)] += 1
        elif event.kind == EVENT_REMOVE:
            self._discard(event.first, event.second)
        return True

    def _answer_unknown(self, address: HostVirtualAddress) -> None:
        """Memory registered after the attach (a VMM that hands off adds some): zeros, for it is
        new. Without an answer now the kernel repeats the fault when the thread is woken."""
        try:
            self._faults.zero(address)
        except (AlreadyPresent, EventPending):
            self._faults.wake(address, PAGE_BYTES)
        except UserFaultFdError:
            pass  # unregistered meanwhile, and woken by that

    def _discard(self, start: int, end: int) -> None:
        for region in self._memory.regions:
            begin, stop = max(start, region.start), min(end, region.end)
            if begin < stop:
                first = PageIndex(region.first_page + (begin - region.start) // PAGE_BYTES)
                self._machine.discard(first, (stop - begin) // PAGE_BYTES)

    # Requests ----------------------------------------------------------------------------------

    def _take_request(self) -> None:
        assert self._channel is not None
        try:
            packet = self._channel.receive()
        except EOFError:
            # Supervisor and evictor are gone: go on answering faults.
            self._poll.unregister(self._channel.fileno())
            self._channel = None
            return
        if packet is None or packet.epoch != self._table.words[Word.EPOCH]:
            return
        self._work.append(self._carry_out(packet))

    def _do_piece(self) -> None:
        try:
            next(self._work[0])
        except StopIteration:
            self._work.popleft()
        except EventPending:  # begins anew after the event: cannot happen past the first piece
            raise AssertionError("a piece of work let EventPending out") from None

    def _carry_out(self, packet: Packet) -> Generator[None]:
        """Do what is asked, a piece between two yields, and answer."""
        result: Runs = []
        request = Request.ANSWER
        if packet.request is Request.BEGIN:
            for first, count in packet.runs:
                result += self._machine.begin(first, count)
        elif packet.request is Request.COMMIT:
            evicted = 0
            for first, count in _pieces(packet.runs):
                evicted += self._machine.commit(first, count)
                yield
            result = [(PageIndex(0), evicted)]
        elif packet.request is Request.ABORT:
            yield from self._abort(packet.runs)
        elif packet.request is Request.RESET:
            evicting = np.flatnonzero(self._table.states == PageState.EVICTING)
            yield from self._abort([(PageIndex(int(page)), 1) for page in evicting])
        elif packet.request is Request.DETACH:
            if not (yield from self._bring_all_back()):
                request = Request.FAILED
        self._answer(Packet(request, packet.epoch, packet.number, result))

    def _answer(self, packet: Packet) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):  # nobody is there to hear it
                self._channel.send(packet)

    def _abort(self, runs: Runs) -> Generator[None]:
        for first, count in _pieces(runs):
            while True:
                try:
                    self._machine.abort(first, count)
                    break
                except EventPending:
                    yield
            yield

    def _bring_all_back(self) -> Generator[None, None, bool]:
        """Every page back into memory, then unregister; False if a page cannot be read."""
        while True:
            stored = np.flatnonzero(self._table.states != PageState.RESIDENT)
            if len(stored) == 0:
                break
            for number, page in enumerate(stored.tolist()):
                try:
                    self._machine.bring_back(PageIndex(page))
                except EventPending:
                    yield
                except (PageDamaged, OSError) as error:
                    return self._refuse_detach(page, str(error))
                if number % _PIECE == 0:
                    yield
            yield  # what is left had to wait for an event, or for its own fault
            for page, why in self._machine.damaged.items():
                return self._refuse_detach(page, why)
        while True:
            try:
                self._memory.allow_writes(PageIndex(0), self._memory.pages)
                break
            except EventPending:
                yield
        for region in self._memory.regions:
            self._faults.unregister(region.start, region.size)
        self._detached = True
        return True

    def _refuse_detach(self, page: int, why: str) -> bool:
        self._table.message = f"{NOT_DETACHED}page {page} of the VM cannot be brought back: {why}"
        return False


def _pieces(runs: Runs) -> Runs:
    return [
        (PageIndex(at), min(_PIECE, first + count - at))
        for first, count in runs
        for at in range(first, first + count, _PIECE)
    ]


def enter_handler_process() -> None:
    """Settings of a fault handler's process: no collector's pauses, no signals of a terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.disable()  # the loop makes no reference cycles
    # The VM's threads wait for this process as they would for the kernel's own fault handler.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
