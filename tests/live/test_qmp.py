# SPDX-License-Identifier: Apache-2.0
"""Monitors that are busy, hang, lie or die: one line each, in bounded time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memvirt.live import qmp
from memvirt.live.discovery import TcpAddress, UnixAddress
from memvirt.live.errors import (
    CommandError,
    MonitorBusy,
    MonitorError,
    MonitorTimeout,
)
from memvirt.live.qmp import QmpMonitor
from tests.waiting import until

from .conftest import SECONDS, Qemu

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}

Serve = Callable[[socket.socket, Any], None]


@pytest.fixture
def server() -> Iterator[Callable[[Serve], UnixAddress]]:
    """Runs a monitor of the test's own on a socket."""
    directory = tempfile.TemporaryDirectory(prefix="memvirt-")
    listeners: list[socket.socket] = []
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(serve: Serve) -> UnixAddress:
        path = Path(directory.name) / f"qmp{len(listeners)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(4)
        listeners.append(listener)

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            with (
                contextlib.suppress(OSError, ValueError, AssertionError),
                connection.makefile("rwb") as file,
            ):
                serve(connection, file)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return UnixAddress(str(path))

    try:
        yield start
    finally:
        for each in (*connections, *listeners):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in threads:
            thread.join(10)
        directory.cleanup()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tests in which nobody answers."""
    monkeypatch.setattr(qmp, "CONNECT_SECONDS", 0.5)


def say(file: Any, message: Any) -> None:
    file.write(json.dumps(message).encode() + b"\r\n")
    file.flush()


def hear(file: Any) -> Any:
    """The next message; the client ends none with a newline."""
    text = b""
    while True:
        byte = file.read(1)
        assert byte, f"the client left after {text!r}"
        text += byte
        try:
            return json.loads(text)
        except ValueError:
            continue


def negotiate(file: Any) -> None:
    say(file, GREETING)
    request = hear(file)
    assert request["execute"] == "qmp_capabilities"
    say(file, {"return": {}} | ({"id": request["id"]} if "id" in request else {}))


@pytest.mark.usefixtures("impatient")
def test_no_greeting_is_a_busy_monitor(server: Any) -> None:
    address = server(lambda connection, file: file.read(1))
    with pytest.raises(MonitorBusy, match=r"vm: .*qmp0: no greeting within 0.5 s; another client"):
        QmpMonitor(address, name="vm")


def test_something_else_behind_the_socket(server: Any) -> None:
    def serve(connection: socket.socket, file: Any) -> None:
        file.write(b"login: \r\n")
        file.flush()

    with pytest.raises(MonitorError, match="not a QMP monitor"):
        QmpMonitor(server(serve), name="vm")


def test_a_command_that_is_not_answered(server: Any) -> None:
    def serve(connection: socket.socket, file: Any) -> None:
        negotiate(file)
        hear(file)
        file.read(1)

    monitor = QmpMonitor(server(serve), name="vm", timeout=0.5)
    assert monitor.version == (7, 2, 0)
    with pytest.raises(MonitorTimeout, match=r"vm: query-status: no answer within 0.5 s"):
        monitor.execute("query-status")
    assert monitor.closed
    with pytest.raises(MonitorError, match="connection is closed"):
        monitor.execute("query-status")


def test_a_monitor_that_dies(server: Any) -> None:
    def serve(connection: socket.socket, file: Any) -> None:
        negotiate(file)
        hear(file)
        connection.shutdown(socket.SHUT_RDWR)

    with (
        QmpMonitor(server(serve), name="vm") as monitor,
        pytest.raises(MonitorError, match="connection was lost at query-status"),
    ):
        monitor.execute("query-status")


def test_events_are_kept_and_waited_for(server: Any) -> None:
    def serve(connection: socket.socket, file: Any) -> None:
        negotiate(file)
        for name in ("STOP", "RESUME", "SHUTDOWN"):
            say(file, {"event": name, "data": {"of": name}, "timestamp": {"seconds": 5}})
        file.read(1)

    with QmpMonitor(server(serve), name="vm") as monitor:
        event = monitor.wait_event("RESUME", timeout=60)
        assert event is not None
        assert (event.name, event.data, event.seconds) == ("RESUME", {"of": "RESUME"}, 5.0)
        found: list[str] = []
        until(lambda: found.extend(e.name for e in monitor.events()) or found, "SHUTDOWN", SECONDS)
        assert found == ["SHUTDOWN"]
        assert monitor.wait_event("STOP", timeout=0.01) is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (UnixAddress("/nowhere/qmp"), "No such file or directory; the socket has been removed"),
        (TcpAddress("127.0.0.1", 1), "refused; nobody listens there any more"),
    ],
)
def test_nobody_there(address: Any, message: str) -> None:
    with pytest.raises(MonitorError, match=message):
        QmpMonitor(address, name="vm")


def test_a_path_longer_than_a_socket_address(server: Any, tmp_path: Path) -> None:
    address = server(lambda connection, file: (negotiate(file), file.read(1)))
    long = tmp_path / ("x" * 100)
    long.mkdir()
    link = long / "qmp"
    link.symlink_to(address.path)
    assert len(str(link)) > 107
    QmpMonitor(UnixAddress(str(link)), name="vm").close()


@pytest.mark.qemu
def test_qemu_itself(anonymous_vm: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    address = UnixAddress(str(anonymous_vm.socket))
    with QmpMonitor(address, name="vm", pid=anonymous_vm.pid) as monitor:
        assert monitor.version >= (5, 0, 0)
        monitor.execute("stop")
        monitor.execute("cont")
        assert monitor.wait_event("RESUME", timeout=60) is not None
        with pytest.raises(CommandError, match="vm: no-such-command") as caught:
            monitor.execute("no-such-command")
        assert caught.value.error_class == "CommandNotFound"
        with monkeypatch.context() as patch:
            patch.setattr(qmp, "CONNECT_SECONDS", 0.5)
            with pytest.raises(MonitorBusy, match="another client holds the monitor"):
                QmpMonitor(address, name="second")
    with QmpMonitor(address, name="vm") as again:
        assert again.execute("query-status")["status"] == "running"


@pytest.mark.qemu
def test_a_stopped_process_does_not_stop_us(anonymous_vm: Qemu) -> None:
    with QmpMonitor(UnixAddress(str(anonymous_vm.socket)), name="vm", timeout=0.5) as monitor:
        os.kill(anonymous_vm.pid, signal.SIGSTOP)
        try:
            with pytest.raises(MonitorTimeout):
                monitor.execute("query-status")
        finally:
            os.kill(anonymous_vm.pid, signal.SIGCONT)


@pytest.mark.qemu
def test_a_socket_path_that_two_vms_were_given(anonymous_vm: Qemu, memfd_vm: Qemu) -> None:
    address = UnixAddress(str(anonymous_vm.socket))
    with pytest.raises(MonitorError, match=f"belongs to process {anonymous_vm.pid}, not to"):
        QmpMonitor(address, name="memfd", pid=memfd_vm.pid)


@pytest.mark.qemu
def test_an_open_file_goes_to_qemu(anonymous_vm: Qemu, tmp_path: Path) -> None:
    file = tmp_path / "given-to-qemu"
    file.touch()
    with (
        QmpMonitor(UnixAddress(str(anonymous_vm.socket)), name="vm") as monitor,
        file.open() as opened,
    ):
        monitor.send_descriptor(opened.fileno(), "given")
        links = [
            os.readlink(f"/proc/{anonymous_vm.pid}/fd/{entry}")
            for entry in os.listdir(f"/proc/{anonymous_vm.pid}/fd")
        ]
        assert str(file) in links
        monitor.execute("closefd", {"fdname": "given"})
