# SPDX-License-Identifier: Apache-2.0
"""One process, seen through ``/proc``: its files, its mappings, whether it is still there.

The directory is held open, so that everything read through it belongs to the process it was opened
for: after that process has ended every access fails, even if its number has been given away again
(proc(5); the directory is bound to the process, not to the number).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from memvirt.address import HostVirtualAddress

from .errors import AccessDenied, ProcessGone

_GONE = (errno.ESRCH, errno.ENOENT)
_DENIED = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of ``/proc/PID/maps``: host virtual addresses ``start`` up to, not with, ``end``."""

    start: HostVirtualAddress
    end: HostVirtualAddress
    permissions: str  # "rw-s": the last letter is s for shared, p for private
    offset: int  # bytes into the file, if it maps one
    device: str
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        """True if writes go to the file or to memory others may map, not to private copies."""
        return self.permissions.endswith("s")


def _parse_mapping(line: str) -> Mapping:
    addresses, permissions, offset, device, inode, *path = line.rstrip("\n").split(None, 5)
    start, end = (int(word, 16) for word in addresses.split("-"))
    return Mapping(
        HostVirtualAddress(start),
        HostVirtualAddress(end),
        permissions,
        int(offset, 16),
        device,
        int(inode),
        path[0] if path else "",
    )


class Process:
    """A process of this host. Use as a context manager, or ``close`` it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._directory = -1
        try:
            self._directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            raise ProcessGone(f"process {pid} is gone") from error

    def duplicate(self) -> Process:
        """Another handle of the same process, to be closed by itself: for another thread."""
        other = Process.__new__(Process)
        other.pid = self.pid
        other._directory = os.dup(self._directory)
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back; may be called again."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the file ``name`` below ``/proc/PID``; the caller closes it.

        Raises ProcessGone, AccessDenied, or OSError for a file this kernel does not have.
        """
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError as error:
            raise self._translate(error, name) from error

    def _translate(self, error: OSError, name: str) -> Exception:
        if error.errno in _DENIED:
            return AccessDenied(
                f"/proc/{self.pid}/{name}: {error.strerror}; run memvirt as root "
                "(CAP_SYS_PTRACE and CAP_SYS_ADMIN)"
            )
        if error.errno == errno.ESRCH or not self.is_alive():
            return ProcessGone(f"process {self.pid} is gone")
        return OSError(error.errno, error.strerror, f"/proc/{self.pid}/{name}")

    def read(self, name: str) -> bytes:
        """The whole file ``name`` below ``/proc/PID``; raises as ``open`` does."""
        descriptor = self.open(name)
        try:
            parts = []
            while part := os.read(descriptor, 1 << 20):
                parts.append(part)
            return b"".join(parts)
        except OSError as error:
            raise self._translate(error, name) from error
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` to the file ``name`` below ``/proc/PID``; raises as ``open`` does."""
        descriptor = self.open(name, os.O_WRONLY)
        try:
            os.write(descriptor, data)
        except OSError as error:
            raise self._translate(error, name) from error
        finally:
            os.close(descriptor)

    def list(self, name: str) -> list[str]:
        """Names in the directory ``name`` below ``/proc/PID``; raises as ``open`` does."""
        descriptor = self.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def read_link(self, name: str) -> str:
        """Where the symbolic link ``name`` below ``/proc/PID`` leads; raises as ``open`` does."""
        try:
            return os.readlink(name, dir_fd=self._directory)
        except OSError as error:
            raise self._translate(error, name) from error

    def is_alive(self) -> bool:
        """False once the process has ended, a zombie included."""
        try:
            descriptor = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError:
            return False
        try:
            text = os.read(descriptor, 4096)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return text.rpartition(b")")[2].split()[0] not in (b"Z", b"X")

    def require_alive(self) -> None:
        """Raises ProcessGone if it has ended. What was read before by number alone is then void."""
        if not self.is_alive():
            raise ProcessGone(f"process {self.pid} is gone")

    def start_time(self) -> int:
        """When it started, in clock ticks after the boot (proc(5), stat field 22).

        With it a process number is unique until the next boot. Raises ProcessGone.
        """
        return int(self.read("stat").rpartition(b")")[2].split()[19])

    def mappings(self) -> Iterator[Mapping]:
        """All mappings of its address space, in ascending order of address."""
        text = self.read("maps").decode("utf-8", "surrogateescape")
        return (_parse_mapping(line) for line in text.splitlines())

    def cpu_seconds(self) -> float:
        """Processor time of all its threads, user and system (proc(5), stat fields 14 and 15)."""
        fields = self.read("stat").rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_pages(process: Process) -> int:
    """Pages of all its memory that a process has mapped. Raises ProcessGone, AccessDenied."""
    return int(process.read("statm").split()[1])
