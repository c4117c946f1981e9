# SPDX-License-Identifier: Apache-2.0
"""The QEMU processes of this host, and by which monitor each can be asked.

``discover`` lists them; ``find_vm`` picks one by name, process number or libvirt domain. Nothing is
connected to here and nothing is changed.

A VM is reached by a QMP socket of its command line (``-qmp``, or ``-mon`` in control mode with a
socket ``-chardev``), else by its libvirt domain if the libvirt bindings are installed. Sockets that
no option calls a QMP monitor are never tried: behind them may be a serial console.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .command_line import CommandLine, parse_command_line, parse_properties
from .errors import AccessDenied, LiveError, ProcessGone, VmNotFound
from .libvirt_domain import domain_names
from .process import Process

__all__ = ["DiscoveredVm", "discover", "find_vm"]

_PROGRAM = re.compile(r"^\.?(qemu-system-\w+|qemu-kvm|kvm)(-wrapped)?( \(deleted\))?$")
HOW_TO_GIVE_A_MONITOR = "add to its command line: -qmp unix:/run/NAME.qmp,server=on,wait=off"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A QMP monitor on a Unix socket. ``path`` is absolute, as this process can reach it."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A QMP monitor on a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


MonitorAddress = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class DiscoveredVm:
    """One QEMU process. ``name`` is unique in a listing: equal names get their process number."""

    pid: int
    name: str
    program: str  # "qemu-system-x86_64"
    uuid: str
    command_line: CommandLine
    monitors: tuple[MonitorAddress, ...]
    domain: str  # of libvirt; "" if it is none of libvirt's, or there are no bindings
    monitor_problem: str  # why there is no monitor and what would give one; "" if there is one
    started: int = 0  # ``Process.start_time``: which process of this number; 0 if it is not known

    @property
    def merges(self) -> bool:
        """False if ``mem-merge=off`` keeps KSM from all of its memory."""
        machine: dict[str, str] = {}
        for properties in self.command_line.properties("machine", "M", implied="type"):
            machine |= properties
        return machine.get("mem-merge", "on") not in ("off", "no", "false")


def _absolute(path: str, process: Process) -> str:
    """``path`` of a process as we can open it: relative to its directory, in its own root."""
    if path.startswith("/"):
        full = path
    else:
        try:
            full = os.path.join(process.read_link("cwd"), path)
        except (LiveError, OSError):
            full = path
    if os.path.exists(full):
        return full
    inside = f"/proc/{process.pid}/root{full}"  # in a container's mount namespace
    return inside if os.path.exists(inside) else full


def _listens(properties: dict[str, str]) -> bool:
    """True if QEMU is the server of a socket. Where it is the client, as of Proxmox's event daemon,
    somebody else listens there, whom we have nothing to say to."""
    return properties.get("server", "off") in ("on", "yes", "true")


def _socket_address(properties: dict[str, str], process: Process) -> MonitorAddress | None:
    if not _listens(properties):
        return None
    if "path" in properties and properties.get("abstract", "off") != "on":
        return UnixAddress(_absolute(properties["path"], process))
    if "port" in properties and properties["port"].isdigit():
        return TcpAddress(properties.get("host") or "127.0.0.1", int(properties["port"]))
    return None


def _old_style_address(value: str, process: Process) -> MonitorAddress | None:
    """The address in ``-qmp unix:PATH,...`` or ``-qmp tcp:HOST:PORT,...``."""
    kind, _, rest = value.partition(":")
    properties = parse_properties(rest, implied="place")
    if not _listens(properties):
        return None
    place = properties.get("place", "")
    if kind == "unix" and place:
        return UnixAddress(_absolute(place, process))
    if kind == "tcp":
        host, _, port = place.rpartition(":")
        if port.isdigit():
            return TcpAddress(host.strip("[]") or "127.0.0.1", int(port))
    return None


def monitor_addresses(line: CommandLine, process: Process) -> tuple[MonitorAddress, ...]:
    """The QMP sockets that a command line names, in its order."""
    devices = {
        properties.get("id", ""): properties
        for properties in line.properties("chardev", implied="backend")
    }
    found: list[MonitorAddress | None] = []
    for option, value in line.options:
        if option in ("qmp", "qmp-pretty"):
            if value.startswith("chardev:"):
                found.append(_socket_address(devices.get(value[8:], {}), process))
            else:
                found.append(_old_style_address(value, process))
        elif option == "mon":
            properties = parse_properties(value, implied="chardev")
            if properties.get("mode", "readline") == "control":
                device = devices.get(properties.get("chardev", ""), {})
                if device.get("backend") == "socket":
                    found.append(_socket_address(device, process))
    return tuple(dict.fromkeys(address for address in found if address is not None))


def _name(line: CommandLine, pid: int) -> str:
    for properties in reversed(line.properties("name", implied="guest")):
        if properties.get("guest"):
            return properties["guest"]
    return f"qemu-{pid}"


def _look_at(pid: int, domains: dict[str, str]) -> DiscoveredVm | None:
    """The VM of process ``pid``, or None if that is no QEMU or has gone meanwhile."""
    try:
        # Most processes are dismissed here; only who may not see the link looks further.
        if not _PROGRAM.match(os.path.basename(os.readlink(f"/proc/{pid}/exe"))):
            return None
    except PermissionError:
        pass
    except OSError:
        return None
    try:
        with Process(pid) as process:
            arguments = process.read("cmdline").decode("utf-8", "surrogateescape").split("\0")[:-1]
            if not arguments:
                return None  # a kernel thread or a zombie
            try:
                program = os.path.basename(process.read_link("exe"))
            except AccessDenied:
                program = os.path.basename(arguments[0])
            if not _PROGRAM.match(program):
                return None
            line = parse_command_line(arguments)
            monitors = monitor_addresses(line, process)
            started = process.start_time()
    except (ProcessGone, AccessDenied, OSError):
        return None
    uuid = next(iter(line.values("uuid")), "")
    domain = domains.get(uuid, "")
    problem = ""
    if not monitors and not domain:
        if any(properties.get("mode") == "control" for properties in line.properties("mon")):
            problem = (
                "its QMP monitor is on an inherited socket (libvirt's way); install the libvirt "
                "bindings: pip install libvirt-python"
            )
        else:
            problem = f"no QMP socket; {HOW_TO_GIVE_A_MONITOR}"
    return DiscoveredVm(
        pid, _name(line, pid), program, uuid, line, monitors, domain, problem, started
    )


def runs_qemu(pid: int) -> bool:
    """True if the program of process ``pid`` is a QEMU; False also if this user may not know."""
    try:
        return bool(_PROGRAM.match(os.path.basename(os.readlink(f"/proc/{pid}/exe"))))
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def discover(pids: Iterable[int] | None = None) -> list[DiscoveredVm]:
    """All QEMU processes of this host that this user may see, in order of process number.

    ``pids`` limits the search to these processes.
    """
    if pids is None:
        pids = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    domains = domain_names()
    vms = [vm for pid in pids if (vm := _look_at(pid, domains)) is not None]
    # While QEMU makes a daemon of itself its first process waits, with the same command line.
    lines = {vm.pid: vm.command_line for vm in vms}
    waiting = {parent for vm in vms if lines.get(parent := _parent(vm.pid)) == vm.command_line}
    vms = [vm for vm in vms if vm.pid not in waiting]
    names = [vm.name for vm in vms]
    return [
        vm if names.count(vm.name) == 1 else replace(vm, name=f"{vm.name}.{vm.pid}") for vm in vms
    ]


def find_vm(wanted: str, vms: Iterable[DiscoveredVm] | None = None) -> DiscoveredVm:
    """The VM called ``wanted``: its name, its process number or its libvirt domain.

    Raises VmNotFound, with the names there are.
    """
    vms = discover() if vms is None else list(vms)
    for vm in vms:
        if wanted in (vm.name, vm.domain) or wanted == str(vm.pid):
            return vm
    if not vms:
        raise VmNotFound(f"no VM {wanted}: no QEMU process is seen on this host")
    there = ", ".join(f"{vm.name} (process {vm.pid})" for vm in vms)
    raise VmNotFound(f"no VM {wanted}; there are {there}")
