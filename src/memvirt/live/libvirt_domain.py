# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, if its Python bindings are installed: their names, and a way to their monitor.

libvirt holds the QMP socket of its domains, so commands go through ``virDomainQemuMonitorCommand``.
It marks a domain that received one as tainted ("custom-monitor"), which changes nothing for the
guest.
"""

from __future__ import annotations

import contextlib
import json
from types import TracebackType
from typing import Any, Self

from .errors import CommandError, MonitorError

URIS = ("qemu:///system", "qemu:///session")


def _connect(uri: str, *, read_only: bool) -> Any:
    """A connection, or None if the bindings or the daemon are not there."""
    try:
        import libvirt  # noqa: PLC0415
    except ImportError:
        return None
    # Without a handler the bindings print every error on standard error.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        return libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    except libvirt.libvirtError:
        return None


def domain_names() -> dict[str, str]:
    """Names of the running domains by UUID; empty without libvirt."""
    names: dict[str, str] = {}
    for uri in URIS:
        connection = _connect(uri, read_only=True)
        if connection is None:
            continue
        try:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    names.setdefault(domain.UUIDString(), domain.name())
        except Exception as error:  # the bindings raise their own class, known only if there
            if type(error).__name__ != "libvirtError":
                raise
        finally:
            with contextlib.suppress(Exception):
                connection.close()
    return names


class LibvirtMonitor:
    """The monitor of a domain, through libvirt. The same interface as ``qmp.QmpMonitor``.

    Raises MonitorError if no daemon has the domain, or none that this user may use.
    """

    def __init__(self, domain: str, uuid: str = "") -> None:
        """``uuid`` says which one is meant where two daemons have a domain of one name."""
        self.name = domain
        self._connection: Any = None
        self._domain: Any = None
        for uri in URIS:
            connection = _connect(uri, read_only=False)
            if connection is None:
                continue
            try:
                self._domain = (
                    connection.lookupByUUIDString(uuid) if uuid else connection.lookupByName(domain)
                )
                self._connection = connection
                return
            except Exception as error:
                connection.close()
                if type(error).__name__ != "libvirtError":
                    raise
        raise MonitorError(f"{domain}: libvirt cannot open this domain; run memvirt as root")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to libvirt; may be called again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Carry out a QMP command and return its result; libvirt sets the time limit."""
        import libvirt_qemu  # noqa: PLC0415

        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        try:
            answer = json.loads(
                libvirt_qemu.qemuMonitorCommand(self._domain, json.dumps(message), 0)
            )
        except Exception as error:
            if type(error).__name__ != "libvirtError":
                raise
            raise MonitorError(f"{self.name}: {command}: libvirt says: {error}") from error
        if "error" in answer:
            problem = answer["error"]
            raise CommandError(
                f"{self.name}: {command}: {problem.get('desc')}", problem.get("class", "")
            )
        return answer["return"]

    def set_memory(self, memory_bytes: int) -> None:
        """Let the guest have so much memory, by libvirt's own call (setmem), so that libvirt knows.

        Raises MonitorError.
        """
        import libvirt  # noqa: PLC0415

        try:
            self._domain.setMemoryFlags(memory_bytes >> 10, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise MonitorError(f"{self.name}: setmem: libvirt says: {error}") from error

    def human(self, line: str, *, cpu_index: int | None = None) -> str:
        """A command of the human monitor, for what QMP has no command for."""
        arguments: dict[str, Any] = {"command-line": line}
        if cpu_index is not None:
            arguments["cpu-index"] = cpu_index
        return str(self.execute("human-monitor-command", arguments))
