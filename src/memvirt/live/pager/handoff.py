# SPDX-License-Identifier: Apache-2.0
"""VMMs that hand their userfaultfd over by themselves: Firecracker's and Cloud Hypervisor's way.

The pager listens on a Unix socket; the VMM connects, and sends its regions with the descriptor
(SCM_RIGHTS). It has done UFFDIO_API and registered its memory itself, and keeps its own copy.

* Firecracker (docs/snapshotting/handling-page-faults-on-snapshot-resume.md, since 1.1): one
  message, a bare JSON array of {base_host_virt_addr, size, offset, page_size, page_size_kib}, no
  answer.
  ``offset`` is the place in the snapshot's memory file; ``page_size_kib`` is in bytes in spite of
  its name. The memory is anonymous: its pages are restored from the memory file and cannot be
  evicted, for nobody outside can take an anonymous page away.
* Cloud Hypervisor (pull request 8657, not merged at the time of writing): a little-endian 32-bit
  length and a JSON object {type: "handoff", version, vmm_pid, mode, regions: [{guest_phys_addr,
  host_virt_addr, size, backing_file_offset}]}, answered by one byte once faults are served; later
  {type: "add_region"} messages, answered the same way. A pager that starts again gets the same
  descriptor by another hand-off.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from memvirt.address import PAGE_BYTES, HostVirtualAddress

from .attachment import USERFAULTFD_LINK, PagerError, Way
from .evictor import NotNow
from .page_states import PageIndex, PageTableFile
from .paged_memory import Region
from .transport import Offer

_MOST_BYTES = 1 << 20
_MOST_DESCRIPTORS = 64
_CREDENTIALS = struct.Struct("iII")
_ACKNOWLEDGED = b"\1"
_SECONDS = 5.0


class Dialect(Enum):
    """Whose format a hand-off is in."""

    FIRECRACKER = "Firecracker"
    CLOUD_HYPERVISOR = "Cloud Hypervisor"


@dataclass(frozen=True)
class Message:
    """A hand-off, checked. ``writable_faults``: write-protection was asked for at registration."""

    dialect: Dialect
    regions: tuple[Region, ...]
    write_protection: bool


def _field(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise PagerError(f"hand-off: a region without a proper {name}: {str(entry)[:100]}")
    return value


def _checked_regions(entries: Any, start: str, offset: str) -> tuple[Region, ...]:
    """Regions in the order of the message. Raises PagerError: they are allegations until then."""
    if not isinstance(entries, list) or not entries:
        raise PagerError("hand-off: no regions")
    regions: list[Region] = []
    first = 0
    for entry in entries:
        values = _field(entry, start), _field(entry, "size"), _field(entry, offset)
        if any(value % PAGE_BYTES for value in values) or values[1] == 0:
            raise PagerError(f"hand-off: a region that is not made of pages of 4 KiB: {entry}")
        page_bytes = entry.get("page_size", entry.get("page_size_kib", PAGE_BYTES))
        if page_bytes != PAGE_BYTES:
            raise PagerError(f"hand-off: pages of {page_bytes} bytes; only 4 KiB pages are served")
        region = Region(HostVirtualAddress(values[0]), values[1], values[2], PageIndex(first))
        for other in regions:
            if region.start < other.end and other.start < region.end:
                raise PagerError(f"hand-off: regions overlap at {region.start:#x}")
        regions.append(region)
        first += region.pages
    return tuple(regions)


def parse_hand_off(data: bytes) -> Message | None:
    """The hand-off in ``data``, or None if more bytes must come. Raises PagerError."""
    if len(data) >= 5 and data[4:5] == b"{":
        length = int.from_bytes(data[:4], "little")
        if length <= _MOST_BYTES:
            return _cloud_hypervisor(data[4 : 4 + length]) if len(data) >= 4 + length else None
    if data[:1] == b"[":
        try:
            entries = json.loads(data)
        except ValueError:
            return None
        regions = _checked_regions(entries, "base_host_virt_addr", "offset")
        return Message(Dialect.FIRECRACKER, regions, write_protection=False)
    if len(data) < 5:
        return None
    raise PagerError(
        f"hand-off: begins with {data[:8]!r}: neither Firecracker's format nor Cloud Hypervisor's"
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise PagerError(f"hand-off: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise PagerError("hand-off: a JSON object was expected")
    return value


def _cloud_hypervisor(body: bytes) -> Message:
    value = _json(body)
    if value.get("type") != "handoff" or value.get("version", 0) != 0:
        raise PagerError(
            f"hand-off: type {value.get('type')!r}, version {value.get('version')!r} is not known; "
            "version 0 of handoff is"
        )
    modes = str(value.get("mode", "")).split("|")
    if "MISSING" not in modes:
        raise PagerError(f"hand-off: mode {value.get('mode')!r}; MISSING|WP is needed")
    regions = _checked_regions(value.get("regions"), "host_virt_addr", "backing_file_offset")
    return Message(Dialect.CLOUD_HYPERVISOR, regions, write_protection="WP" in modes)


def receive_hand_off(connection: socket.socket) -> tuple[Message, int]:
    """Read a hand-off and its userfaultfd (the caller owns it). Raises PagerError."""
    connection.settimeout(_SECONDS)
    data, descriptors = b"", array.array("i")
    try:
        while True:
            part = _receive(connection, descriptors)
            if not part:
                raise PagerError("hand-off: the VMM closed the socket in the middle of its message")
            data += part
            message = parse_hand_off(data)
            if message is not None:
                break
            if len(data) > _MOST_BYTES:
                raise PagerError("hand-off: the message is longer than 1 MiB")
        kept = [fd for fd in descriptors if _is_userfaultfd(fd)]
        if len(kept) != 1:
            raise PagerError(f"hand-off: {len(kept)} userfaultfds came with it, not 1")
        descriptors.remove(kept[0])
        return message, kept[0]
    except TimeoutError:
        raise PagerError(f"hand-off: no whole message within {_SECONDS:g} s") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(connection: socket.socket, descriptors: array.array[int]) -> bytes:
    space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * descriptors.itemsize)
    part, ancillary, flags, _ = connection.recvmsg(1 << 16, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) // 4 * 4])
    if flags & socket.MSG_CTRUNC:
        raise PagerError(f"hand-off: more than {_MOST_DESCRIPTORS} descriptors")
    return part


def _is_userfaultfd(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}") == USERFAULTFD_LINK


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``. Raises PagerError if something is there already."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(1)
    except OSError as error:
        server.close()
        raise PagerError(f"{path}: {error.strerror}; choose a path that does not exist") from error
    return server


class HandOffTransport:
    """One VM that handed its userfaultfd over. ``transport.Transport``.

    ``no_direct_io``: the user vouches that no device of this VM writes to its memory other than
    through the processor's page tables; only then its pages are evicted, for there is no monitor to
    drain it with.
    """

    way = Way.HAND_OFF

    def __init__(
        self,
        pid: int,
        *,
        no_direct_io: bool,
        connection: socket.socket | None = None,
        message: Message | None = None,
        descriptor: int = -1,
    ) -> None:
        self._connection = connection
        self._no_direct_io = no_direct_io
        self.pid, self.name = pid, f"vmm-{pid}"
        self._descriptor = descriptor
        self._regions = () if message is None else message.regions
        self._answers = message is not None and message.dialect is Dialect.CLOUD_HYPERVISOR
        self._pending = b""

    @classmethod
    def accepted(cls, connection: socket.socket, *, no_direct_io: bool) -> HandOffTransport:
        """Receive the hand-off of the VMM at the other end. Raises PagerError."""
        message, descriptor = receive_hand_off(connection)
        connection.setblocking(False)
        return cls(
            peer_process(connection), no_direct_io=no_direct_io, connection=connection,
            message=message, descriptor=descriptor,
        )  # fmt: skip

    @classmethod
    def resumed(cls, pid: int, *, no_direct_io: bool) -> HandOffTransport:
        """For a VMM that handed over to an earlier pager and does not do so again: ``resume``
        takes the descriptor from its process."""
        return cls(pid, no_direct_io=no_direct_io)

    def regions(self) -> tuple[Region, ...]:
        return self._regions

    def open(self) -> Offer:
        for entry in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{self.pid}/fd/{entry}") == USERFAULTFD_LINK:
                    return Offer(self._descriptor, int(entry), registered=True)
        raise PagerError(f"{self.name}: the VMM kept no copy of its userfaultfd")

    def close_remote(self, descriptor: int) -> None:
        """The VMM's copy is the VMM's."""

    def serving(self) -> None:
        """Cloud Hypervisor waits (2 s at most) for one byte."""
        if self._answers and self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(_ACKNOWLEDGED)

    def take_messages(self) -> None:
        """Answer what the VMM sends after the hand-off. Call several times a second.

        Memory that it adds is served with zeros and never evicted.
        """
        if self._connection is None:
            return
        try:
            part = self._connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:  # closed: Firecracker before 1.12 does so at once
            self._connection = None
            return
        self._pending += part
        while len(self._pending) >= 4:
            end = 4 + int.from_bytes(self._pending[:4], "little")
            if len(self._pending) < end:
                break
            self._pending = self._pending[end:]
            self.serving()

    def supervision(self, table: PageTableFile) -> HandOffSupervision:
        return HandOffSupervision(self.name, no_direct_io=self._no_direct_io)


class HandOffSupervision:
    """There is no monitor: nothing can be drained or watched."""

    def __init__(self, name: str, *, no_direct_io: bool) -> None:
        self._name = name
        self._no_direct_io = no_direct_io

    def drain(self) -> None:
        if not self._no_direct_io:
            raise NotNow(
                f"{self._name}: nothing is evicted: direct I/O of its devices cannot be drained "
                "from here; --no-direct-io vouches that it has none"
            )

    def migrating(self) -> str:
        return ""

    def close(self) -> None:
        pass


def peer_process(connection: socket.socket) -> int:
    """The process at the other end of a Unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])
