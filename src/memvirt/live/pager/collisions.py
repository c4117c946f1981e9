# SPDX-License-Identifier: Apache-2.0
"""What must not happen to a VM while it is paged from outside: found, and refused in one line.

Everything is looked for before anything is touched. The rule is: refuse what is not proved.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

from memvirt.live.answers import run_state, understood
from memvirt.live.command_line import CommandLine
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import CommandError, LiveError
from memvirt.live.migration import outgoing
from memvirt.live.process import Process
from memvirt.live.qmp import Monitor
from memvirt.live.ram import Backing, RamLayout

from .attachment import USERFAULTFD_LINK, PagerError
from .ptrace import SYS_USERFAULTFD
from .userfaultfd import Feature, UserFaultFd, missing_features

_HOW_TO_SHARE = (
    "start it with -object memory-backend-memfd,id=ram,size=SIZE,share=on -machine"
    " memory-backend=ram"
)
_CAPABILITIES = {
    "postcopy-ram": "postcopy migration",
    "background-snapshot": "background snapshots",
}
_DEVICE_FILES = {
    "/dev/vfio/": "VFIO (devices write to memory without the processor's page tables)",
    "/dev/vhost-": "vhost (the kernel writes to memory on its own)",
    "anon_inode:kvm-vfio": "VFIO",
}


def migration_under_way(monitor: Monitor) -> str:
    """Why the VM must not be paged now because of a migration, or ""."""
    with understood(monitor.name):
        if status := outgoing(monitor):
            return f"a migration is under way ({status})"
        for capability in monitor.execute("query-migrate-capabilities"):
            if capability["state"] and capability["capability"] in _CAPABILITIES:
                what = _CAPABILITIES[capability["capability"]]
                return f"{what} is switched on, and a paged VM would be lost by it"
    return ""


def refuse_kernel() -> None:
    """Raises PagerError if this kernel lacks what paging needs; names it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        reason = os.strerror(ctypes.get_errno())
        raise PagerError(f"userfaultfd: {reason}; paging needs root and CONFIG_USERFAULTFD")
    probe = UserFaultFd(descriptor)
    try:
        missing = missing_features(probe.handshake(Feature(0)))
    finally:
        probe.close()
    if missing:
        raise PagerError(f"this kernel's userfaultfd lacks {', '.join(missing)}")


def refuse_process(name: str, pid: int) -> None:
    """Raises PagerError for a tracer, locked memory, devices and descriptors that collide."""
    with Process(pid) as process:
        status = dict(
            line.split(":", 1)
            for line in process.read("status").decode().splitlines()
            if ":" in line
        )
        tracer = int(status.get("TracerPid", "0"))
        if tracer:
            raise PagerError(f"{name}: process {tracer} traces it already; detach that first")
        locked = int(status.get("VmLck", "0 kB").split()[0])
        if locked:
            raise PagerError(
                f"{name}: {locked} KiB of its memory are locked (mem-lock=on); locked pages cannot "
                "be evicted"
            )
    if device := device_open(pid):
        raise PagerError(f"{name}: {device}; this is not proved yet")
    for link in _open_files(pid):
        if link == USERFAULTFD_LINK:
            raise PagerError(
                f"{name}: its memory has a userfaultfd already (a migration, a snapshot or another "
                "pager)"
            )


def device_open(pid: int) -> str:
    """Which device that reaches the VM's memory without its page tables a process has open, or "".

    Such a device may be plugged in at any time. Its file is open before it pins the first page, and
    a page that is pinned for writing after it was write-protected causes a fault: so an evictor
    that looks between protecting and punching takes no page that such a device writes to.
    """
    for link in _open_files(pid):
        for prefix, what in _DEVICE_FILES.items():
            if link.startswith(prefix):
                return f"it has {link} open: {what}"
    return ""


def _open_files(pid: int) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError as error:
        raise PagerError(f"{directory}: {error.strerror}") from error
    for number in numbers:
        try:
            yield os.readlink(f"{directory}/{number}")
        except OSError:
            continue  # closed meanwhile


def refuse_command_line(name: str, line: CommandLine) -> None:
    """Raises PagerError for devices that pin memory or bypass the drain: io_uring, vhost, VFIO."""
    for option, value in line.options:
        for word, what in (
            ("aio=io_uring", "io_uring disks"),
            ('"aio":"io_uring"', "io_uring disks"),
            ("vhost=on", "vhost"),
            ("vhost-user", "vhost-user"),
            ("vhost-vdpa", "vDPA"),
            ("vfio-", "VFIO"),
        ):
            if word in value.replace(" ", ""):
                raise PagerError(
                    f"{name}: -{option} {value}: {what} are not proved with paging yet"
                )


def refuse_layout(name: str, layout: RamLayout) -> None:
    """Raises PagerError unless all RAM is shared memory in 4 KiB pages."""
    for block in layout.blocks:
        if block.backing is Backing.HUGETLB:
            raise PagerError(
                f"{name}: {block.name} is made of huge pages; paging needs 4 KiB pages"
            )
        if block.backing in (Backing.ANONYMOUS, Backing.FILE) or not block.shared:
            raise PagerError(
                f"{name}: {block.name} is {block.backing.value} memory, not a shared memfd; "
                f"{_HOW_TO_SHARE}"
            )


def refuse_other_mappings(name: str, pid: int, layout: RamLayout) -> None:
    """Raises PagerError if anybody maps the RAM a second time: those mappings would see holes."""
    wanted = {block.inode: block for block in layout.blocks}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with Process(int(entry)) as process:
                mappings = [m for m in process.mappings() if m.inode in wanted]
        except (LiveError, OSError):
            continue  # ended meanwhile
        for mapping in mappings:
            block = wanted[mapping.inode]
            if mapping.device != block.device:
                continue
            start, end = block.host_address, block.host_address + block.bytes
            if int(entry) != pid or not start <= mapping.start < end:
                raise PagerError(
                    f"{name}: {block.name} is mapped a second time, by process {entry} at "
                    f"{mapping.start:#x} (vhost-user, virtiofs?); it would see holes"
                )


def refuse_monitor_state(name: str, monitor: Monitor) -> None:
    """Raises PagerError if a migration is under way, or the VM is in no state to be paged."""
    reason = migration_under_way(monitor)
    if reason:
        raise PagerError(f"{name}: {reason}")
    status = run_state(monitor)
    if status not in ("running", "paused"):
        raise PagerError(f"{name}: its status is {status}; it must be running or paused")


def refuse_collisions(vm: DiscoveredVm, monitor: Monitor, layout: RamLayout) -> None:
    """All of the above for a QEMU VM. Raises PagerError; nothing has been changed."""
    refuse_kernel()
    refuse_command_line(vm.name, vm.command_line)
    refuse_process(vm.name, vm.pid)
    refuse_layout(vm.name, layout)
    refuse_other_mappings(vm.name, vm.pid, layout)
    refuse_monitor_state(vm.name, monitor)
    _refuse_pluggable_memory(vm.name, monitor)
    _refuse_plugged_devices(vm.name, monitor)


def _refuse_pluggable_memory(name: str, monitor: Monitor) -> None:
    """Memory that can be plugged out would vanish under its pager. Memory that is plugged in later
    is not paged, and may go again."""
    try:
        devices: list[dict[str, Any]] = monitor.execute("query-memory-devices")
    except CommandError:
        return  # a machine without any
    if devices:
        kinds = ", ".join(sorted({str(device.get("type")) for device in devices}))
        raise PagerError(
            f"{name}: it has memory that can be plugged out ({kinds}): not proved with paging yet"
        )


def _refuse_plugged_devices(name: str, monitor: Monitor) -> None:
    """Devices plugged later are in no command line: ask for the types of all there are."""
    try:
        devices: list[dict[str, Any]] = monitor.execute("qom-list", {"path": "/machine/peripheral"})
        devices += monitor.execute("qom-list", {"path": "/machine/peripheral-anon"})
    except CommandError:
        return
    with understood(name):
        for device in devices:
            kind = str(device.get("type", ""))
            if any(word in kind for word in ("vfio", "vhost", "vdpa")):
                raise PagerError(
                    f"{name}: device {device['name']} is {kind}: not proved with paging yet"
                )
