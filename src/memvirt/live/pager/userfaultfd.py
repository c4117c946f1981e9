# SPDX-License-Identifier: Apache-2.0
"""Linux's userfaultfd, as far as a pager of another process needs it.

Source: include/uapi/linux/userfaultfd.h and Documentation/admin-guide/mm/userfaultfd.rst of
Linux 6.1. Every address is a host virtual address of the process the descriptor was made in,
whoever holds a copy of the descriptor.

Errno values become words: ``EventPending`` (EAGAIN: an event is unread, or the thread that caused
it has not run on; *read events, then try again*, for no call can succeed before),
``AlreadyPresent`` (EEXIST), ``ProcessGone`` (ESRCH), ``UserFaultFdError`` (everything else, a fault
of ours).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from enum import IntFlag
from typing import NamedTuple

from memvirt.address import PAGE_BYTES, HostVirtualAddress

API_VERSION = 0xAA
EVENT_PAGE_FAULT = 0x12
EVENT_REMOVE = 0x15
FAULT_FLAG_WRITE_PROTECT = 1 << 1
MESSAGE = struct.Struct("<B7xQQQ")  # event, flags or start, address or end, thread

_REGISTER_MISSING_AND_WRITE_PROTECT = 1 | 2
_PROTECT, _ALLOW_WRITES = 1, 0


class Feature(IntFlag):
    """Features that UFFDIO_API reports (Linux's UFFD_FEATURE_*)."""

    EVENT_REMOVE = 1 << 3
    MISSING_SHMEM = 1 << 5
    WP_HUGETLBFS_SHMEM = 1 << 12


NEEDED_FEATURES = Feature.EVENT_REMOVE | Feature.MISSING_SHMEM | Feature.WP_HUGETLBFS_SHMEM
FEATURE_KERNELS = {
    Feature.EVENT_REMOVE: "4.11",
    Feature.MISSING_SHMEM: "4.11",
    Feature.WP_HUGETLBFS_SHMEM: "5.19",
}


class UserFaultFdError(Exception):
    """A userfaultfd call that cannot succeed; the message says which and why."""


class EventPending(Exception):
    """The call must wait until events have been read (EAGAIN)."""


class AlreadyPresent(Exception):
    """The page is in memory already (EEXIST); whoever waits for it must be woken."""


class ProcessGone(Exception):
    """The process whose memory this was has ended (ESRCH)."""


class Event(NamedTuple):
    """One message read from a userfaultfd.

    For EVENT_PAGE_FAULT ``first`` holds the fault's flags and ``second`` the address; for
    EVENT_REMOVE they are the start and the end of the discarded range.
    """

    kind: int
    first: int
    second: int


def _read_write(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | API_VERSION << 8 | number


def _read(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | API_VERSION << 8 | number


_API_CALL = _read_write(0x3F, 24)
_REGISTER_CALL = _read_write(0x00, 32)
_UNREGISTER_CALL = _read(0x01, 16)
_WAKE_CALL = _read(0x02, 16)
_COPY_CALL = _read_write(0x03, 40)
_ZERO_CALL = _read_write(0x04, 32)
_WRITE_PROTECT_CALL = _read_write(0x06, 24)
_COPY = struct.Struct("<QQQQq")
_ZERO = struct.Struct("<QQQq")
_PROTECTION = struct.Struct("<QQQ")
_RANGE = struct.Struct("<QQ")


class UserFaultFd:
    """A copy of a userfaultfd descriptor (-1: none), owned by this object, closed by ``close``.

    Closing the *last* copy anywhere while threads wait in faults gives them pages of zeros,
    silently: the owner must know of another copy, or have unregistered every range.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
        self._copy = bytearray(_COPY.size)
        self._zero = bytearray(_ZERO.size)
        self._protection = bytearray(_PROTECTION.size)

    def handshake(self, features: Feature) -> Feature:
        """UFFDIO_API, once for a descriptor; returns what the kernel has of all features.

        Raises UserFaultFdError if it lacks one of ``features``.
        """
        message = bytearray(struct.pack("<QQQ", API_VERSION, features, 0))
        try:
            fcntl.ioctl(self.descriptor, _API_CALL, message, True)
        except OSError as error:
            raise UserFaultFdError(f"the kernel refuses UFFDIO_API: {error.strerror}") from error
        return Feature(struct.unpack_from("<Q", message, 8)[0])

    def register(self, start: HostVirtualAddress, size: int) -> None:
        """From now on, faults on missing and on write-protected pages of the range are ours."""
        message = bytearray(
            struct.pack("<QQQQ", start, size, _REGISTER_MISSING_AND_WRITE_PROTECT, 0)
        )
        self._call("register", start, size, _REGISTER_CALL, message)

    def unregister(self, start: HostVirtualAddress, size: int) -> None:
        """The kernel serves the range's faults again; threads that wait in one are woken."""
        self._call("unregister", start, size, _UNREGISTER_CALL, bytearray(_RANGE.pack(start, size)))

    def wake(self, start: HostVirtualAddress, size: int) -> None:
        """Threads that wait for a page of the range try again, and report a fault anew."""
        self._call("wake", start, size, _WAKE_CALL, bytearray(_RANGE.pack(start, size)))

    def write_protect(self, start: HostVirtualAddress, size: int) -> None:
        """Any write to the range, mapped or not, waits in a fault from now on."""
        _PROTECTION.pack_into(self._protection, 0, start, size, _PROTECT)
        self._call("write-protect", start, size, _WRITE_PROTECT_CALL, self._protection)

    def allow_writes(self, start: HostVirtualAddress, size: int) -> None:
        """Undo ``write_protect``; threads that wait to write are woken."""
        _PROTECTION.pack_into(self._protection, 0, start, size, _ALLOW_WRITES)
        self._call("allow writes to", start, size, _WRITE_PROTECT_CALL, self._protection)

    def copy(self, destination: HostVirtualAddress, source: int) -> None:
        """Fill the missing page with the 4 KiB at ``source`` in our memory; wake who waits."""
        _COPY.pack_into(self._copy, 0, destination, source, PAGE_BYTES, 0, 0)
        self._call("copy to", destination, PAGE_BYTES, _COPY_CALL, self._copy)

    def zero(self, destination: HostVirtualAddress) -> None:
        """Fill the missing page with zeros; wake who waits."""
        _ZERO.pack_into(self._zero, 0, destination, PAGE_BYTES, 0, 0)
        self._call("zero", destination, PAGE_BYTES, _ZERO_CALL, self._zero)

    def _call(self, what: str, start: int, size: int, call: int, message: bytearray) -> None:
        try:
            fcntl.ioctl(self.descriptor, call, message, True)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise EventPending from None
            if error.errno == errno.EEXIST:
                raise AlreadyPresent from None
            if error.errno == errno.ESRCH:
                raise ProcessGone from None
            raise UserFaultFdError(
                f"userfaultfd: cannot {what} {start:#x}, {size} bytes: {error.strerror}"
            ) from error

    def read(self) -> Event | None:
        """The next message, or None if there is none now.

        Reading EVENT_REMOVE lets the thread go on that discards the range: whatever its discard
        obliges us to must happen before the next call that could bring one of its pages back.
        """
        try:
            message = os.read(self.descriptor, MESSAGE.size)
        except BlockingIOError:
            return None
        kind, first, second, _ = MESSAGE.unpack(message)
        return Event(kind, first, second)

    def close(self) -> None:
        """Close this copy of the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def missing_features(found: Feature) -> list[str]:
    """What a pager needs and ``found`` lacks: "WP_HUGETLBFS_SHMEM (Linux 5.19)"."""
    return [
        f"{feature.name} (Linux {FEATURE_KERNELS[feature]})"
        for feature in NEEDED_FEATURES
        if feature not in found
    ]
