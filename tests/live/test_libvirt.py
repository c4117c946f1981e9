# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains through its bindings, played here by a module of the same interface."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest

from memvirt.live.errors import CommandError, MonitorError
from memvirt.live.libvirt_domain import LibvirtMonitor, domain_names


class libvirtError(Exception):  # noqa: N801
    """The bindings' own class, by its name."""


class Domain:
    def __init__(self, name: str, uuid: str, active: bool = True) -> None:
        self._name, self._uuid, self._active = name, uuid, active

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802
        return self._uuid

    def isActive(self) -> bool:  # noqa: N802
        return self._active


class Connection:
    def __init__(self, domains: list[Domain]) -> None:
        self.domains, self.closed = domains, False

    def listAllDomains(self) -> list[Domain]:  # noqa: N802
        return self.domains

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        for domain in self.domains:
            if domain.name() == name:
                return domain
        raise libvirtError(f"Domain not found: {name}")

    def lookupByUUIDString(self, uuid: str) -> Domain:  # noqa: N802
        for domain in self.domains:
            if domain.UUIDString() == uuid:
                return domain
        raise libvirtError(f"Domain not found: {uuid}")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The modules ``libvirt`` and ``libvirt_qemu``; only the session's daemon is there."""
    connections: list[Connection] = []
    library: Any = ModuleType("libvirt")
    qemu: Any = ModuleType("libvirt_qemu")

    def connect(uri: str) -> Connection:
        if uri == "qemu:///system":
            raise libvirtError("no daemon")
        connections.append(Connection([Domain("web", "u-1"), Domain("off", "u-2", False)]))
        return connections[-1]

    def command(domain: Domain, text: str, flags: int) -> str:
        request = json.loads(text)
        if request["execute"] == "hang":
            raise libvirtError("Timed out during operation")
        if request["execute"] == "query-status":
            return json.dumps({"return": {"status": "running"}, "id": "libvirt-1"})
        if request["execute"] == "human-monitor-command":
            return json.dumps({"return": json.dumps(request["arguments"])})
        return json.dumps({"error": {"class": "CommandNotFound", "desc": "not known"}})

    library.libvirtError = libvirtError
    library.registerErrorHandler = lambda handler, context: None
    library.open = library.openReadOnly = connect
    qemu.qemuMonitorCommand = command
    monkeypatch.setitem(sys.modules, "libvirt", library)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", qemu)
    return connections


def test_running_domains_by_uuid(bindings: list[Connection]) -> None:
    assert domain_names() == {"u-1": "web"}
    assert all(connection.closed for connection in bindings)


def test_commands_go_through_libvirt(bindings: list[Connection]) -> None:
    with LibvirtMonitor("web") as monitor:
        assert monitor.execute("query-status") == {"status": "running"}
        line = json.loads(monitor.human("info registers", cpu_index=1))
        assert line == {"command-line": "info registers", "cpu-index": 1}
        with pytest.raises(CommandError, match="web: nothing: not known") as caught:
            monitor.execute("nothing")
        assert caught.value.error_class == "CommandNotFound"
        with pytest.raises(MonitorError, match="web: hang: libvirt says: Timed out"):
            monitor.execute("hang")
    assert bindings[-1].closed


def test_of_two_domains_of_one_name_the_one_that_is_meant(
    bindings: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's daemon has a "web", too, and is asked first."""
    library: Any = sys.modules["libvirt"]
    session = library.open

    def connect(uri: str) -> Connection:
        return Connection([Domain("web", "u-9")]) if uri.endswith("system") else session(uri)

    monkeypatch.setattr(library, "open", connect)
    monkeypatch.setattr(library, "openReadOnly", connect)
    assert domain_names() == {"u-9": "web", "u-1": "web"}
    monkeypatch.setattr(
        sys.modules["libvirt_qemu"], "qemuMonitorCommand",
        lambda domain, text, flags: json.dumps({"return": domain.UUIDString()}),
    )  # fmt: skip
    for uuid in ("u-1", "u-9"):
        with LibvirtMonitor("web", uuid) as monitor:
            assert monitor.execute("query-uuid") == uuid


def test_a_domain_that_cannot_be_opened(bindings: list[Connection]) -> None:
    with pytest.raises(MonitorError, match="nobody: libvirt cannot open this domain"):
        LibvirtMonitor("nobody")


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert domain_names() == {}
    with pytest.raises(MonitorError):
        LibvirtMonitor("web")
