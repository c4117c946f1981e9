# SPDX-License-Identifier: Apache-2.0
"""Messages between the evictor and the fault handler: one packet each, on a socket pair.

The supervisor keeps both ends open and gives them to the next process when one dies. A packet
carries the epoch it was sent in; the handler drops those of another epoch, so that a request to a
handler that has died is never carried out by the next. An answer has the number of its request;
other answers were for an evictor that has died.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from .page_states import PageIndex, PageTableFile, Word

MOST_RUNS = 512
_HEAD = struct.Struct("<BQQI")
_RUN = struct.Struct("<QI")
_WAIT_SECONDS = 0.05
_MOST_BYTES = _HEAD.size + MOST_RUNS * _RUN.size

Runs = list[tuple[PageIndex, int]]


class Request(IntEnum):
    """What is asked of the fault handler; each is answered by one ANSWER."""

    BEGIN = 1  # RESIDENT -> EVICTING; answered with the runs that are
    COMMIT = 2  # punch; answered with one run (0, pages evicted)
    ABORT = 3  # EVICTING -> RESIDENT
    RESET = 4  # a new evictor: abort everything that is EVICTING
    DETACH = 5  # bring every page back and unregister; no runs
    ANSWER = 6
    FAILED = 7  # the request could not be carried out; the table's message says why


@dataclass(frozen=True)
class Packet:
    """One message."""

    request: Request
    epoch: int
    number: int
    runs: Runs


class Channel:
    """One end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, packet: Packet) -> None:
        """Send, without waiting. Raises OSError if the other end is closed or reads nothing."""
        head = _HEAD.pack(packet.request, packet.epoch, packet.number, len(packet.runs))
        body = b"".join(_RUN.pack(first, count) for first, count in packet.runs)
        self._socket.send(head + body, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def receive(self, timeout: float = 0.0) -> Packet | None:
        """The next packet, or None if none comes in time. Raises EOFError if the end is closed."""
        if timeout and not self._poll.poll(timeout * 1000):
            return None
        try:
            data = self._socket.recv(_MOST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise EOFError from None
        if not data:
            raise EOFError
        request, epoch, number, count = _HEAD.unpack_from(data)
        runs = [(PageIndex(first), pages) for first, pages in _RUN.iter_unpack(data[_HEAD.size :])]
        assert len(runs) == count
        return Packet(Request(request), epoch, number, runs)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


class HandlerChanged(Exception):
    """The fault handler died and another took over: what was asked for is void."""


class NoAnswer(Exception):
    """``give_up`` said so before the answer came."""


class Requester:
    """The evictor's side: sends requests and waits for their answers."""

    def __init__(self, channel: Channel, table: PageTableFile) -> None:
        self._channel = channel
        self._words = table.words
        self._number = time.time_ns()

    def ask(
        self, request: Request, runs: Runs, give_up: Callable[[], bool] = lambda: False
    ) -> Packet:
        """The answer to a request (ANSWER or FAILED).

        Raises HandlerChanged if another handler took over meanwhile (the request may or may not
        have been carried out in part), NoAnswer if ``give_up`` turns true.
        """
        epoch = self._words[Word.EPOCH]
        self._number += 1
        packet, sent = Packet(request, epoch, self._number, runs), False
        while True:
            if not sent:
                with contextlib.suppress(BlockingIOError):  # nobody reads: the handler is dead
                    self._channel.send(packet)
                    sent = True
            answer = self._channel.receive(_WAIT_SECONDS)
            if answer is not None and answer.number == self._number:
                return answer
            if self._words[Word.EPOCH] != epoch:
                raise HandlerChanged
            if answer is None and give_up():
                raise NoAnswer


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends: the fault handler's and the evictor's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
