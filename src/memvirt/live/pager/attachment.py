# SPDX-License-Identifier: Apache-2.0
"""What is on disk of a paged VM, so that any later pager can go on: files, locks, the record.

::

    STORE/lock                          held while VMs are attached and removed
    STORE/SALT/blocks-*, taken-*, ...   the pages of all VMs of one salt (store.py)
    STORE/SALT/PID-START/attachment.json    this module's record
                         pages              the table (page_states.py)
                         supervisor, handler, evictor    locks of the roles
    RUNTIME/PID -> STORE/SALT/PID-START     how --status and --detach find it

START is the process's start time (proc(5), stat field 22): with it a process number is unique. The
record is written before memory is registered, so there is no paged memory without one. Locks are
POSIX record locks: they end with their process, and tell its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from memvirt.address import HostVirtualAddress
from memvirt.live.errors import LiveError
from memvirt.live.process import Process

from .blocks import Codec
from .page_states import PageIndex
from .paged_memory import Region

_RECORD = "attachment.json"
_FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl(2) on 64-bit Linux
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


class PagerError(LiveError):
    """Paging a VM is refused or failed; the message is one line for the user."""


class Way(Enum):
    """How the userfaultfd reached us, and with it who can be asked to do what."""

    QEMU = "qemu"
    HAND_OFF = "hand-off"


class Role(Enum):
    """The processes of a pager."""

    SUPERVISOR = "supervisor"
    HANDLER = "handler"
    EVICTOR = "evictor"


@dataclass(frozen=True)
class Record:
    """The contents of attachment.json.

    ``descriptor`` is the number of the userfaultfd inside the VM's process.
    """

    name: str
    pid: int
    started: int
    way: Way
    descriptor: int
    regions: tuple[Region, ...]
    memory_file: str  # of a snapshot being restored; "" if there is none
    codec: Codec
    store_limit: int | None

    def as_json(self) -> str:
        fields = dataclasses.asdict(self)
        fields["way"], fields["codec"] = self.way.value, self.codec.name
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Record:
        fields = json.loads(text)
        fields["way"], fields["codec"] = Way(fields["way"]), Codec[fields["codec"]]
        fields["regions"] = tuple(
            Region(
                HostVirtualAddress(region["start"]),
                region["size"],
                region["file_offset"],
                PageIndex(region["first_page"]),
            )
            for region in fields["regions"]
        )
        return cls(**fields)


def runtime_directory() -> Path:
    """Where links to the attachments are; MEMVIRT_RUNTIME_DIR overrides it."""
    chosen = os.environ.get("MEMVIRT_RUNTIME_DIR")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/memvirt/page")
    return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / "memvirt-page"


def start_time(pid: int) -> int:
    """The start time of a process, in clock ticks after the boot. Raises live.ProcessGone."""
    with Process(pid) as process:
        return process.start_time()


def is_running(pid: int, started: int) -> bool:
    """True if this very process still runs."""
    try:
        with Process(pid) as process:
            return start_time(pid) == started and process.is_alive()
    except LiveError:
        return False


class RoleLock:
    """The lock of one role of one attachment; held until the process ends or ``release``."""

    def __init__(self, directory: Path, role: Role) -> None:
        self._file = os.open(directory / role.value, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """Take it; False if another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def holder(self) -> int | None:
        """The process that has it, None if nobody does (or we do)."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else pid

    def release(self) -> None:
        os.close(self._file)


@contextlib.contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Held while attachments of a store are made or removed."""
    file = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def salt_directory(store: Path, salt: str) -> Path:
    """The directory of a salt. Its name says nothing of the salt."""
    return store / hashlib.sha256(b"memvirt page store\0" + salt.encode()).hexdigest()[:24]


def write_record(directory: Path, record: Record) -> None:
    """Write the record, whole or not at all."""
    temporary = directory / (_RECORD + ".new")
    temporary.write_text(record.as_json())
    temporary.replace(directory / _RECORD)


def read_record(directory: Path) -> Record:
    """Raises PagerError if there is none that can be read."""
    path = directory / _RECORD
    try:
        return Record.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PagerError(f"{path}: no record of a paged VM ({error})") from error


def publish(directory: Path, pid: int) -> None:
    """Let --status and --detach find the attachment of process ``pid``."""
    runtime = runtime_directory()
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    link = runtime / str(pid)
    link.unlink(missing_ok=True)
    link.symlink_to(directory.absolute())


def find_attachment(pid: int) -> Path | None:
    """The directory of the attachment of process ``pid``, None if it is not paged."""
    link = runtime_directory() / str(pid)
    try:
        directory = link.resolve(strict=True)
        record = read_record(directory)
    except (OSError, PagerError):
        return None
    return directory if record.pid == pid and is_running(pid, record.started) else None


def all_attachments() -> list[Path]:
    """The directories of all attachments that are published, of dead VMs too."""
    runtime = runtime_directory()
    if not runtime.is_dir():
        return []
    found = []
    for link in sorted(runtime.iterdir()):
        with contextlib.suppress(OSError):
            found.append(link.resolve(strict=True))
    return found


def remove_attachment(directory: Path) -> None:
    """Nothing stays: the record, the table, the link, and the salt's pages with its last VM."""
    with contextlib.suppress(PagerError, OSError):
        link = runtime_directory() / str(read_record(directory).pid)
        if link.resolve() == directory.resolve():
            link.unlink()
            link.parent.rmdir()  # fails, rightly, while other VMs are paged
    salt, store = directory.parent, directory.parent.parent
    with store_lock(store):
        shutil.rmtree(directory, ignore_errors=True)
        if not any(entry.is_dir() for entry in salt.iterdir()):
            shutil.rmtree(salt, ignore_errors=True)
        rest = [entry for entry in store.iterdir() if entry.name != "lock"]
        if not rest:
            (store / "lock").unlink(missing_ok=True)


def sweep(store: Path) -> int:
    """Remove what VMs that have ended left in a store (their pager was killed with them)."""
    removed = 0
    for path in store.glob(f"*/*/{_RECORD}"):
        with contextlib.suppress(PagerError, FileNotFoundError):
            record = read_record(path.parent)
            if not is_running(record.pid, record.started):
                remove_attachment(path.parent)
                removed += 1
    return removed


def take_descriptor(pid: int, descriptor: int) -> int:
    """A copy of an open file of another process (pidfd_getfd(2)). Raises PagerError."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise PagerError(f"process {pid}: {error.strerror}") from error
    try:
        copy = _libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
        if copy < 0:
            reason = os.strerror(ctypes.get_errno())
            raise PagerError(f"process {pid}: its descriptor {descriptor}: {reason}")
    finally:
        os.close(process)
    if os.readlink(f"/proc/self/fd/{copy}") != USERFAULTFD_LINK:
        os.close(copy)
        raise PagerError(f"process {pid}: its descriptor {descriptor} is no userfaultfd any more")
    return int(copy)


USERFAULTFD_LINK = "anon_inode:[userfaultfd]"


def open_backing(pid: int, regions: tuple[Region, ...]) -> list[int | None]:
    """The file behind each region, opened through the process's own mappings; None if anonymous."""
    files: list[int | None] = []
    with Process(pid) as process:
        mappings = list(process.mappings())
        for region in regions:
            inside = [m for m in mappings if m.start <= region.start < m.end]
            if not inside:
                raise PagerError(f"process {pid}: nothing is mapped at {region.start:#x}")
            mapping = inside[0]
            if mapping.inode == 0 or not mapping.shared:
                files.append(None)
                continue
            files.append(process.open(f"map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDWR))
    return files
