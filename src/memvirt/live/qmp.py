# SPDX-License-Identifier: Apache-2.0
"""The QMP monitor of a VM, for code that is not asynchronous: commands with time limits, events.

The protocol is the ``qemu.qmp`` library's. All connections share one background thread with an
event loop, which takes events in as they come, so that QEMU never has to keep them for us.

A monitor serves one client at a time: close it when it is not needed. Monitors may be used from any
thread, but not across ``fork``: a child opens its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecInterruptedError, ExecuteError

from .discovery import DiscoveredVm, MonitorAddress, TcpAddress, UnixAddress, runs_qemu
from .errors import (
    AccessDenied,
    CommandError,
    LiveError,
    MonitorBusy,
    MonitorError,
    MonitorTimeout,
)
from .libvirt_domain import LibvirtMonitor

CONNECT_SECONDS = 2.0
COMMAND_SECONDS = 5.0
_MOST_EVENTS = 1024
_MOST_PATH_BYTES = 107  # sun_path of unix(7), without its final zero

# The library logs what it also raises; whoever wants its log sets up logging.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

_Result = TypeVar("_Result")


class Monitor(Protocol):
    """What the rest of this package needs of a monitor."""

    name: str

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any: ...

    def human(self, line: str, *, cpu_index: int | None = None) -> str: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something QEMU told unasked, such as "STOP". ``seconds`` is QEMU's time of day."""

    name: str
    data: dict[str, Any]
    seconds: float


class _Loop:
    """One event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
        """Carry ``work`` out in the loop's thread; raises TimeoutError after ``seconds``."""

        async def limited() -> _Result:
            return await asyncio.wait_for(work, seconds)

        return asyncio.run_coroutine_threadsafe(limited(), self._started()).result()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=loop.run_forever, name="memvirt-qmp", daemon=True
                )
                self._loop, self._pid = loop, os.getpid()
                self._thread.start()
            return self._loop

    def stop(self) -> None:
        with self._lock:
            if self._loop is None or self._thread is None or self._pid != os.getpid():
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(1)
            if not self._loop.is_running():
                self._loop.close()
            self._loop = None


_LOOP = _Loop()
atexit.register(_LOOP.stop)


def _connect_unix(path: str) -> socket.socket:
    """Connect to a socket file, whatever the length of its path."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(CONNECT_SECONDS)
    try:
        if len(os.fsencode(path)) <= _MOST_PATH_BYTES:
            connection.connect(path)
        else:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
            finally:
                os.close(directory)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(address: MonitorAddress, name: str) -> socket.socket:
    try:
        if isinstance(address, TcpAddress):
            return socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        return _connect_unix(address.path)
    except (TimeoutError, BlockingIOError) as error:
        raise MonitorBusy(
            f"{name}: {address}: does not take the connection; another client may hold the monitor"
        ) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise AccessDenied(
                f"{name}: {address}: {error.strerror}; run memvirt as root or as the socket's owner"
            ) from error
        what = error.strerror or str(error)
        hint = {
            errno.ENOENT: "; the socket has been removed",
            errno.ECONNREFUSED: "; nobody listens there any more",
        }.get(error.errno or 0, "")
        raise MonitorError(f"{name}: {address}: {what}{hint}") from error


def _listener(connection: socket.socket) -> int:
    """Process number of the one who listens at the other end of a Unix socket (unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


class QmpMonitor:
    """A QMP connection to one VM. Use as a context manager, or ``close`` it.

    With ``pid`` the monitor is refused if another QEMU process listens there: two VMs were started
    with one socket path, and the earlier one can no longer be reached by it.
    """

    def __init__(
        self,
        address: MonitorAddress,
        *,
        name: str,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self._timeout = COMMAND_SECONDS if timeout is None else timeout
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._news = threading.Condition()
        self._closed = False
        self._collector: asyncio.Task[None] | None = None
        connection = _connect(address, name)
        if isinstance(address, UnixAddress) and pid is not None:
            other = _listener(connection)
            if other != pid and runs_qemu(other):
                connection.close()
                raise MonitorError(
                    f"{name}: {address}: belongs to process {other}, not to {pid}; give each VM a "
                    "socket of its own"
                )
        connection.setblocking(False)
        self._client = QMPClient(name)
        try:
            _LOOP.run(self._open(connection), CONNECT_SECONDS)
        except TimeoutError as error:
            connection.close()
            self._abandon()
            raise MonitorBusy(
                f"{name}: {address}: no greeting within {CONNECT_SECONDS:g} s; another client "
                "holds the monitor, or QEMU hangs"
            ) from error
        except (QMPError, OSError, EOFError) as error:
            connection.close()
            self._abandon()
            raise MonitorError(f"{name}: {address}: not a QMP monitor ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _open(self, connection: socket.socket) -> None:
        await self._client.connect(connection)
        self._collector = asyncio.get_running_loop().create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self._client.events:
            stamp: Any = message.get("timestamp", {})
            data: Any = message.get("data", {})
            seconds = float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) / 1e6
            with self._news:
                self._events.append(Event(str(message["event"]), dict(data), seconds))
                self._news.notify_all()

    async def _close(self) -> None:
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await self._client.disconnect()

    def _abandon(self) -> None:
        """Close a connection of which nothing is expected any more, whatever state it is in."""
        self._closed = True
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            _LOOP.run(self._close(), CONNECT_SECONDS)

    def close(self) -> None:
        """End the connection; may be called again."""
        if not self._closed:
            self._abandon()

    @property
    def closed(self) -> bool:
        """True once the connection has been closed or given up."""
        return self._closed

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version, as the greeting gave it."""
        greeting = self._client.greeting
        version: Any = greeting.QMP.version["qemu"] if greeting is not None else {}
        return tuple(int(version.get(part, 0)) for part in ("major", "minor", "micro"))  # type: ignore[return-value]

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Carry out a QMP command and return its result.

        Raises CommandError if QEMU refuses it, MonitorTimeout if it does not answer (the connection
        is then closed), MonitorError if the connection is lost.
        """
        if self._closed:
            raise MonitorError(f"{self.name}: {self.address}: the connection is closed")
        seconds = self._timeout if timeout is None else timeout
        try:
            return _LOOP.run(self._client.execute(command, arguments), seconds)
        except ExecuteError as error:
            raise CommandError(f"{self.name}: {command}: {error}", error.error_class) from error
        except TimeoutError as error:
            self._abandon()
            raise MonitorTimeout(
                f"{self.name}: {command}: no answer within {seconds:g} s; QEMU hangs or is stopped"
            ) from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            self._abandon()
            raise MonitorError(
                f"{self.name}: {self.address}: the connection was lost at {command}"
            ) from error

    def execute_together(self, *commands: str) -> None:
        """Send commands without arguments at once; QEMU carries them out one after the other.

        Between ``stop`` and ``cont`` sent like this no time passes that is ours. Raises as
        ``execute``, for the first that fails.
        """
        if self._closed:
            raise MonitorError(f"{self.name}: {self.address}: the connection is closed")

        async def all_of_them() -> None:
            await asyncio.gather(*(self._client.execute(command) for command in commands))

        try:
            _LOOP.run(all_of_them(), self._timeout)
        except ExecuteError as error:
            raise CommandError(f"{self.name}: {commands}: {error}", error.error_class) from error
        except TimeoutError as error:
            self._abandon()
            raise MonitorTimeout(
                f"{self.name}: {commands}: no answer within {self._timeout:g} s; QEMU hangs or is "
                "stopped"
            ) from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            self._abandon()
            raise MonitorError(
                f"{self.name}: {self.address}: the connection was lost at {commands}"
            ) from error

    def human(self, line: str, *, cpu_index: int | None = None) -> str:
        """A command of the human monitor, for what QMP has no command for; raises as ``execute``.

        Obligation: never ``info mem`` or ``info tlb``; they can hold QEMU for more than a minute.
        """
        arguments: dict[str, Any] = {"command-line": line}
        if cpu_index is not None:
            arguments["cpu-index"] = cpu_index
        return str(self.execute("human-monitor-command", arguments))

    def send_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of an open file, known to it as ``name`` (QMP ``getfd``, SCM_RIGHTS)."""

        async def send() -> None:
            self._client.send_fd_scm(descriptor)

        if not isinstance(self.address, UnixAddress):
            raise MonitorError(f"{self.name}: {self.address}: only a Unix socket passes open files")
        _LOOP.run(send(), self._timeout)
        self.execute("getfd", {"fdname": name})

    def events(self) -> list[Event]:
        """What came since the last call, oldest first; of a flood the last 1024 are kept."""
        with self._news:
            pending = list(self._events)
            self._events.clear()
            return pending

    def wait_event(self, *names: str, timeout: float) -> Event | None:
        """The next event with one of ``names``, or None after ``timeout`` seconds.

        Events before it are dropped.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while self._events:
                    event = self._events.popleft()
                    if event.name in names:
                        return event
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._news.wait(left)


def open_monitor(vm: DiscoveredVm, *, timeout: float | None = None) -> Monitor:
    """A monitor of a discovered VM: its QMP sockets in turn, then libvirt.

    Raises the error of the first one if none can be used; MonitorError with what to add to the
    command line if there is none.
    """
    problems: list[LiveError] = []
    for address in vm.monitors:
        try:
            return QmpMonitor(address, name=vm.name, pid=vm.pid, timeout=timeout)
        except LiveError as error:
            problems.append(error)
    if vm.domain:
        return LibvirtMonitor(vm.domain, vm.uuid)
    if problems:
        raise problems[0]
    raise MonitorError(f"{vm.name} (process {vm.pid}): {vm.monitor_problem}")
