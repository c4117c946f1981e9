# SPDX-License-Identifier: Apache-2.0
"""Where gdb connects, and the run of a VM between its packets.

The stub has no thread: between two quanta it looks whether gdb wants something, and while the VM is
stopped it waits for gdb. Whoever runs the VM calls ``GdbSession.between_quanta``.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from memvirt.errors import MemvirtError
from memvirt.vm.outcome import EndReason, Outcome
from memvirt.vm.virtual_machine import VirtualMachine

from .packets import INTERRUPT, PacketReader, framed
from .stub import SIGNAL_FAULT, After, Stub

_LOOPBACK = "127.0.0.1"
_GOODBYE_SECONDS = 1.0
# Ends after which there is something to look at.
_DEATHS = (
    EndReason.TRIPLE_FAULT, EndReason.NO_FIRMWARE, EndReason.MISCONFIGURED,
    EndReason.ENGINE_ERROR, EndReason.HALTED,
)  # fmt: skip
Wait = Callable[[int], bool]
"""Waits until a descriptor can be read; False if the run is to end instead."""


class GdbServerError(MemvirtError):
    """gdb cannot be listened for; the message says where and why."""


def _left_behind(path: str) -> bool:
    """True if ``path`` is a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _say_goodbye(connection: socket.socket) -> None:
    """Close a connection so that our last word arrives.

    What gdb still has to say (it acknowledges that word) must not meet a closed socket: it would be
    answered by a reset, which may overtake. Who does not hang up is waited for a second.
    """
    until = time.monotonic() + _GOODBYE_SECONDS
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break


class GdbServer:
    """A socket for gdb: a TCP port of the loopback interface, or a Unix socket of its owner.

    ``place`` is a port number (0: a free one) or a path. Raises GdbServerError.
    """

    def __init__(self, place: str) -> None:
        self._path: Path | None = None
        try:
            if place.isascii() and place.isdigit():
                self._socket = self._listen_tcp(place)
            else:
                self._socket = self._listen_unix(place)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GdbServerError(f"--gdb {place}: {reason}") from error

    @staticmethod
    def _listen_tcp(place: str) -> socket.socket:
        port = int(place[:6])
        if port > 0xFFFF:
            raise ValueError("a port is at most 65535; or give the path of a socket")
        return socket.create_server((_LOOPBACK, port), backlog=1)

    def _listen_unix(self, place: str) -> socket.socket:
        if not place:
            raise ValueError("give a port, or the path of a socket")
        if _left_behind(place):
            os.unlink(place)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(place)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        self._path = Path(place)
        listener.listen(1)
        return listener

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    @property
    def place(self) -> str:
        """What to give to gdb's ``target remote``."""
        if self._path is not None:
            return str(self._path)
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """The connection that waits."""
        connection, _ = self._socket.accept()
        if self._path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class GdbSession:
    """One VM and the debuggers that come to it, one after the other."""

    def __init__(self, server: GdbServer, vm: VirtualMachine, wait: Wait) -> None:
        debugging = vm.processor.debugging
        if debugging is None:
            raise GdbServerError("this processor cannot be debugged")
        self._server, self._vm, self._wait = server, vm, wait
        self._stub = Stub(vm, debugging)
        self._reader = PacketReader()
        self._connection: socket.socket | None = None
        self._sent = b""
        self._waiting: list[bytes | None] = []  # not yet answered: some may come after a resume

    def wait_for_debugger(self) -> None:
        """Let gdb in before the guest's first instruction; it says when to go on."""
        if self._wait(self._server.fileno()):
            self._accept()
            self._while_stopped()

    def between_quanta(self) -> None:
        """The processor stands still: see to what gdb wants, or to why the VM has stopped."""
        if self._connection is None:
            if _readable(self._server.fileno()):
                self._accept()
                self._stub.interrupted()
                self._while_stopped()
        elif self._vm.debug_stop is not None:
            if self._stub.stopped():
                self._reply(self._stub.stop_reply)
                self._while_stopped()
        else:
            if _readable(self._connection.fileno()):
                self._receive()
            if INTERRUPT in self._waiting:
                self._waiting.remove(INTERRUPT)
                self._stub.interrupted()
                self._reply(self._stub.stop_reply)
                self._while_stopped()

    def finish(self, outcome: Outcome) -> None:
        """The VM has ended: tell gdb. If it has died, gdb may look around first."""
        if self._connection is None:
            return
        if outcome.reason in _DEATHS:
            self._stub.interrupted(SIGNAL_FAULT)
            self._reply(self._stub.stop_reply)
            self._while_stopped()
        self._reply(f"W{outcome.exit_status:02x}".encode())
        self._close()

    # Packets -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        self._connection = self._server.accept()
        self._reader = PacketReader()
        self._waiting.clear()
        self._stub.new_connection()

    def _close(self) -> None:
        if self._connection is not None:
            _say_goodbye(self._connection)
            self._connection = None
        self._stub.release()

    def _receive(self) -> None:
        """Take what gdb has sent. Its leaving is a detach."""
        assert self._connection is not None
        try:
            data = self._connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        received = self._reader.take(data)
        if received.refused:
            self._send(self._sent)
        self._waiting.extend(received.packets)

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            try:
                self._connection.sendall(data)
            except OSError:
                self._close()

    def _reply(self, content: bytes) -> None:
        self._sent = framed(content)
        self._send(self._sent)

    def _while_stopped(self) -> None:
        """Answer packets until one of them lets the VM go on."""
        while self._connection is not None:
            while self._waiting:
                if not self._answer(self._waiting.pop(0)):
                    return
            if self._connection is None or not self._wait(self._connection.fileno()):
                return
            self._receive()

    def _answer(self, packet: bytes | None) -> bool:
        """Answer one packet; False if the VM goes on."""
        stub = self._stub
        if packet == INTERRUPT:
            return True  # it is stopped already
        if stub.acknowledges:
            self._send(b"-" if packet is None else b"+")
        if packet is None:
            return True
        reply, after = stub.handle(packet)
        if reply is not None:
            self._reply(reply)
        if after is After.DETACH:
            self._close()
        elif after is After.KILL:
            self._vm.stop(detail="by its debugger")
            self._close()
        return after is After.NOTHING


def _readable(descriptor: int) -> bool:
    ready, _, _ = select.select([descriptor], [], [], 0)
    return bool(ready)
