# SPDX-License-Identifier: Apache-2.0
"""QEMU as the VM: how a userfaultfd is made inside it, and what its monitor is asked for.

The descriptor is made by one system call injected into QEMU (``ptrace.py``), so that it belongs to
QEMU's address space, and stays open there: if every process of the pager dies, faults wait instead
of reading zeros.
"""

from __future__ import annotations

import contextlib
import errno
import os

from memvirt.live.answers import run_state
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.errors import LiveError
from memvirt.live.process import Process
from memvirt.live.qmp import Monitor, QmpMonitor, open_monitor
from memvirt.live.ram import read_ram_layout

from .attachment import PagerError, Way, take_descriptor
from .collisions import device_open, migration_under_way, refuse_collisions
from .evictor import NotNow
from .page_states import PageIndex, PageTableFile, Stopped, Word
from .paged_memory import Region
from .ptrace import SYS_CLOSE, SYS_IOCTL, SYS_USERFAULTFD, InjectionError, run_system_call
from .transport import Offer

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_DEVICE = "/dev/userfaultfd"
_NEW_USERFAULTFD = 0xAA00  # USERFAULTFD_IOC_NEW, _IO(0xAA, 0)
_PASSED_NAME = "memvirt-userfaultfd"
_STOPPED = frozenset(("paused", "debug", "io-error", "watchdog", "guest-panicked"))


class QemuTransport:
    """Makes a userfaultfd in a running, stock QEMU. ``transport.Transport``."""

    way = Way.QEMU

    def __init__(self, vm: DiscoveredVm) -> None:
        self._vm = vm
        self.name = vm.name
        self.pid = vm.pid

    def regions(self) -> tuple[Region, ...]:
        """The VM's RAM, after every check. Raises PagerError or LiveError; nothing is changed."""
        with contextlib.closing(open_monitor(self._vm)) as monitor, Process(self.pid) as process:
            layout = read_ram_layout(monitor, process)
            refuse_collisions(self._vm, monitor, layout)
        return tuple(
            Region(block.host_address, block.bytes, block.file_offset, PageIndex(block.first_index))
            for block in layout.blocks
        )

    def open(self) -> Offer:
        """Make the descriptor. Raises PagerError; QEMU is as before then."""
        number = self._inject(SYS_USERFAULTFD, _FLAGS)
        if number == -errno.EPERM:
            number = self._through_device()
        if number < 0:
            raise PagerError(f"{self.name}: QEMU cannot make a userfaultfd: {os.strerror(-number)}")
        return Offer(take_descriptor(self.pid, number), number, registered=False)

    def _inject(self, call: int, *arguments: int) -> int:
        try:
            return run_system_call(self.pid, call, *arguments)
        except InjectionError as error:
            raise PagerError(f"{self.name}: {error}") from error

    def _through_device(self) -> int:
        """For a QEMU without the right to call userfaultfd(): give it the open device."""
        try:
            device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PagerError(
                f"{self.name}: QEMU may not make a userfaultfd, and {_DEVICE} cannot be opened: "
                f"{error.strerror} (Linux 6.1 has it)"
            ) from error
        with contextlib.closing(open_monitor(self._vm)) as monitor:
            try:
                if not isinstance(monitor, QmpMonitor):
                    raise PagerError(
                        f"{self.name}: QEMU may not make a userfaultfd, and libvirt's monitor "
                        "passes no open files; give the VM a QMP socket of its own"
                    )
                monitor.send_descriptor(device, _PASSED_NAME)
                try:
                    return self._inject(SYS_IOCTL, self._passed(), _NEW_USERFAULTFD, _FLAGS)
                finally:
                    monitor.execute("closefd", {"fdname": _PASSED_NAME})
            finally:
                os.close(device)

    def _passed(self) -> int:
        directory = f"/proc/{self.pid}/fd"
        for number in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.readlink(f"{directory}/{number}") == _DEVICE:
                    return int(number)
        raise PagerError(f"{self.name}: QEMU did not keep the {_DEVICE} it was given")

    def close_remote(self, descriptor: int) -> None:
        """Close QEMU's own copy: after every range has been unregistered, not before."""
        os.close(take_descriptor(self.pid, descriptor))  # raises unless it is still what it was
        self._inject(SYS_CLOSE, descriptor)

    def serving(self) -> None:
        """QEMU waits for nothing."""

    def supervision(self, table: PageTableFile) -> QemuSupervision:
        """For the evictor's process."""
        return QemuSupervision(self._vm, table)


class QemuSupervision:
    """What the evictor asks of QEMU's monitor. The connection is made when it is needed, and given
    back by ``close``: a monitor serves one client at a time."""

    def __init__(self, vm: DiscoveredVm, table: PageTableFile) -> None:
        self._vm = vm
        self._words = table.words
        self._open: Monitor | None = None

    def _monitor(self) -> Monitor:
        if self._open is None:
            self._open = open_monitor(self._vm)
        return self._open

    def drain(self) -> None:
        """Stop the VM and let it go on: QEMU's ``stop`` returns when all its I/O is done.

        A VM that its user continues or stops in this very millisecond ends up running. Raises
        NotNow if the VM is in a state of which this is not known, or if a device was plugged in
        that does not keep to it.
        """
        self._drain()
        if device := device_open(self._vm.pid):
            raise NotNow(f"{self._vm.name}: nothing is evicted: {device}")

    def _drain(self) -> None:
        try:
            monitor = self._monitor()
            status = run_state(monitor)
            if status in _STOPPED:
                return
            if status != "running":
                raise NotNow(f"{self._vm.name}: nothing is evicted while its status is {status}")
            # On disk first: if we die in between, the next evictor knows who has stopped the VM.
            self._words[Word.STOPPED_BY_US] |= Stopped.DRAIN
            if isinstance(monitor, QmpMonitor):
                monitor.execute_together("stop", "cont")
            else:
                monitor.execute("stop")
                monitor.execute("cont")
            self._words[Word.STOPPED_BY_US] &= ~Stopped.DRAIN
        except LiveError:
            self.close()
            raise

    def recover(self) -> None:
        """Continue the VM if a pager died between its stop and its cont. Raises LiveError."""
        if not self._words[Word.STOPPED_BY_US] & Stopped.DRAIN:
            return
        if run_state(self._monitor()) == "paused":
            self._monitor().execute("cont")
        self._words[Word.STOPPED_BY_US] &= ~Stopped.DRAIN

    def migrating(self) -> str:
        """Why paging must end, or "". Raises LiveError."""
        try:
            self.recover()
            return device_open(self._vm.pid) or migration_under_way(self._monitor())
        except LiveError:
            self.close()
            raise

    def close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(LiveError):
                self._open.close()
            self._open = None
