# SPDX-License-Identifier: Apache-2.0
"""What a client that is slow, gone, or not there costs: frames are never queued for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from memvirt.web import app
from memvirt.web.server import Address, WebServer
from memvirt.web.source import Frame
from memvirt.web.wire import decode
from tests.waiting import until

from .conftest import Served

_BYTES = 2 << 20  # of a frame that does not deflate: sockets hold a few of them
_FRAMES = 40


class RandomFrames:
    """A source whose every frame is new, and whole."""

    def __init__(self) -> None:
        self.viewers = 0
        self.latest: Frame | None = None
        self._random = np.random.default_rng(1)

    def publish(self, number: int) -> None:
        classes = self._random.integers(0, 256, _BYTES, np.uint8)
        self.latest = Frame(number, {"number": number, "vms": []}, {"machine": classes})

    def hello(self) -> dict[str, Any]:
        return {"title": "random"}

    def watch(self, viewers: int, activity: int = 0) -> None:
        self.viewers = viewers

    def events_since(self, position: int) -> list[dict[str, Any]]:
        return []

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(question())
        return future

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RandomFrames, WebServer]]:
    monkeypatch.setattr(app, "_MOST_BYTES_A_SECOND", 1e12)
    source = RandomFrames()
    server = WebServer(source, Address(), answers={}, commands={})
    server.start()
    yield source, server
    server.close()


def _silent_client(server: WebServer) -> socket.socket:
    """A client that opens the socket of state and never reads from it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", server.port))
    made.sendall(
        f"GET /live?token={server.token} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    return made


def test_frames_are_not_queued_for_a_client_that_does_not_read(
    serving: tuple[RandomFrames, WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client beside it gets every frame; for the silent one a few are made, not all."""
    source, server = serving
    made: list[int] = []
    original = app._message

    def counted(frame: Frame, *rest: Any) -> bytes:
        made.append(frame.number)
        return original(frame, *rest)

    monkeypatch.setattr(app, "_message", counted)
    url = f"ws://127.0.0.1:{server.port}/live?token={server.token}"
    with _silent_client(server), connect(url, max_size=None) as reader:
        assert json.loads(reader.recv()) == source.hello()
        until(lambda: source.viewers == 2, "its clients to be known", 300)
        for number in range(1, _FRAMES + 1):
            source.publish(number)
            message = reader.recv(timeout=300)
            assert isinstance(message, bytes)
            assert decode(message)[0]["number"] == number
        for_the_silent = len(made) - _FRAMES
    assert 1 <= for_the_silent <= _FRAMES // 3


def test_a_client_that_vanished_is_let_go(
    serving: tuple[RandomFrames, WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never closes its socket; a message that it does not take ends it."""
    monkeypatch.setattr(app, "_SEND_SECONDS", 0.2)
    source, server = serving
    with _silent_client(server):
        until(lambda: source.viewers == 1, "its clients to be known", 300)
        numbers = iter(range(1, 100_000))

        def gone() -> bool:
            source.publish(next(numbers))
            return source.viewers == 0

        until(gone, "the client to be let go", 300)


def test_a_big_frame_is_sent_less_often(
    serving: tuple[RandomFrames, WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a message the next waits as long as its bytes take at the rate that is allowed."""
    monkeypatch.setattr(app, "_MOST_BYTES_A_SECOND", _BYTES / 1e6)  # one frame takes for ever
    source, server = serving
    with connect(
        f"ws://127.0.0.1:{server.port}/live?token={server.token}", max_size=None
    ) as reader:
        reader.recv()
        source.publish(1)
        assert isinstance(reader.recv(timeout=300), bytes)
        source.publish(2)
        with pytest.raises(TimeoutError):
            reader.recv(timeout=0.5)


def test_nothing_is_captured_when_nobody_looks(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, captured = served.source, []
    original = source.capture

    def capture() -> Frame:
        captured.append(served.host.rounds)
        return original()

    served.ask(lambda: source.control("pause"))
    until(lambda: source._viewers == 0, "its clients to be known", 300)
    monkeypatch.setattr(source, "capture", capture)
    before = served.round()
    served.ask(lambda: source.control("step", 5))
    until(lambda: served.round() == before + 5, "five rounds", 300)
    served.ask(lambda: None)  # the turn of the thread in which the last round was made is over
    assert captured == []
    source.watch(1)
    until(lambda: captured == [before + 5], "a frame", 300)
    source.watch(0)


def test_frames_take_a_small_part_of_the_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a frame, the next waits until the host has spent so much that its cost is 3 %."""
    source = served.source
    served.ask(lambda: source.control("pause"))
    until(lambda: source._viewers == 0, "its clients to be known", 300)
    spent, taken = [100.0], []
    monkeypatch.setattr(source, "_spent", lambda: spent[0])
    monkeypatch.setattr(source, "capture", lambda: taken.append(1))
    monkeypatch.setattr("memvirt.web.host_source.FRAME_SECONDS", 0.0)
    monkeypatch.setattr("memvirt.web.host_source.MOST_OF_TIME", 1e-12)

    def look() -> int:
        source._viewers, source._dirty = 1, True
        source._capture_if_watched(force=False)
        source._viewers = 0
        return len(taken)

    def looks() -> list[int]:
        source._next_frame, source._next_paid = 0.0, 0.0
        counts = [look(), look()]
        spent[0] = 1e15
        counts.append(look())
        source._next_paid = 0.0
        return counts

    assert served.ask(looks) == [1, 1, 2]
