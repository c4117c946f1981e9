# SPDX-License-Identifier: Apache-2.0
"""One VM being paged: made by ``attach``, found again by ``resume``, ended by ``end``.

The order of an attach is that of safety: checks; directory, table and store (a full disk ends it
here); the descriptor; the record on disk; the registration. From the registration on the VM's
faults wait for a handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memvirt.address import PAGE_BYTES

from .attachment import (
    PagerError,
    Record,
    Role,
    RoleLock,
    Way,
    open_backing,
    publish,
    read_record,
    remove_attachment,
    salt_directory,
    start_time,
    store_lock,
    sweep,
    take_descriptor,
    write_record,
)
from .blocks import Codec, memory_file_entry
from .page_states import PageTableFile
from .paged_memory import VirtualMachineMemory
from .store import create_block_files
from .transport import Offer, Transport
from .userfaultfd import NEEDED_FEATURES, ProcessGone, UserFaultFd, UserFaultFdError

_TABLE = "pages"
_KILL_SECONDS = 5.0


@dataclass(frozen=True)
class StoreOptions:
    """Where and how evicted pages are kept. ``salt`` "" gives the VM a store of its own."""

    directory: Path
    salt: str = ""
    codec: Codec = Codec.LZ4
    limit: int | None = None


@dataclass
class Session:
    """An attached VM, as one process of the pager sees it."""

    directory: Path
    record: Record
    table: PageTableFile
    faults: UserFaultFd
    memory: VirtualMachineMemory
    memory_file: int | None

    @property
    def store_directory(self) -> Path:
        """The store of the VM's salt."""
        return self.directory.parent

    def end(self) -> None:
        """Close everything and remove what is on disk. After a detach, or the VM's end."""
        self.faults.close()
        self.memory.close()
        if self.memory_file is not None:
            os.close(self.memory_file)
        remove_attachment(self.directory)


def _open(directory: Path, record: Record, descriptor: int) -> Session:
    memory_file = None
    if record.memory_file:
        memory_file = os.open(record.memory_file, os.O_RDONLY | os.O_CLOEXEC)
    faults = UserFaultFd(descriptor)
    memory = VirtualMachineMemory(faults, record.regions, open_backing(record.pid, record.regions))
    table = PageTableFile(directory / _TABLE)
    return Session(directory, record, table, faults, memory, memory_file)


def _make_directory(options: StoreOptions, pid: int, started: int, pages: int) -> Path:
    """The attachment's directory with its table. Raises PagerError; leaves nothing then."""
    store = options.directory
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(store)
        salt = salt_directory(store, options.salt or f"{pid}-{started}")
        directory = salt / f"{pid}-{started}"
        with store_lock(store):
            salt.mkdir(mode=0o700, exist_ok=True)
            create_block_files(salt)
            directory.mkdir(mode=0o700)
    except FileExistsError as error:
        raise PagerError(f"{error.filename}: this VM is paged already, or was") from error
    except OSError as error:
        raise PagerError(f"{error.filename or store}: {error.strerror}") from error
    try:
        table = PageTableFile.create(directory / _TABLE, pages)
    except OSError as error:
        remove_attachment(directory)
        raise PagerError(f"{error.filename}: {error.strerror}") from error
    table.restored_at[:] = int(time.monotonic())
    return directory


def attach(transport: Transport, options: StoreOptions, memory_file: Path | None = None) -> Session:
    """Begin to page a VM. Raises PagerError or LiveError, and leaves the VM as it was.

    The caller must start a fault handler at once: faults wait for it.
    """
    regions = transport.regions()
    started = start_time(transport.pid)
    directory = _make_directory(
        options, transport.pid, started, sum(region.pages for region in regions)
    )
    session: Session | None = None
    offer: Offer | None = None
    try:
        offer = transport.open()
        record = Record(
            name=transport.name,
            pid=transport.pid,
            started=started,
            way=transport.way,
            descriptor=offer.theirs,
            regions=regions,
            memory_file=str(memory_file.absolute()) if memory_file is not None else "",
            codec=options.codec,
            store_limit=options.limit,
        )
        session = _open(directory, record, offer.ours)
        _fill_from_memory_file(session)
        write_record(directory, record)
        publish(directory, transport.pid)
        if not offer.registered:
            _register(session)
    except BaseException as error:
        _undo(transport, directory, offer, session)
        if isinstance(error, UserFaultFdError):
            raise PagerError(f"{transport.name}: {error}") from error
        if isinstance(error, ProcessGone):
            raise PagerError(f"{transport.name}: process {transport.pid} ended") from error
        if isinstance(error, OSError):
            raise PagerError(f"{error.filename or directory}: {error.strerror}") from error
        raise
    return session


def _undo(
    transport: Transport, directory: Path, offer: Offer | None, session: Session | None
) -> None:
    """After an attach that failed: no page is stored yet, so unregistering loses nothing."""
    if session is not None:
        for region in session.record.regions:
            with contextlib.suppress(UserFaultFdError, ProcessGone):
                session.faults.unregister(region.start, region.size)
        session.end()
    else:
        if offer is not None:
            os.close(offer.ours)
        remove_attachment(directory)
    if offer is not None:
        with contextlib.suppress(PagerError):
            transport.close_remote(offer.theirs)


def _register(session: Session) -> None:
    with contextlib.suppress(UserFaultFdError):  # done by a pager that died here
        session.faults.handshake(NEEDED_FEATURES)
    for region in session.record.regions:
        session.faults.register(region.start, region.size)


def _fill_from_memory_file(session: Session) -> None:
    """A snapshot's pages are in its memory file: they are stored already."""
    if session.memory_file is None:
        if not session.memory.evictable:
            raise PagerError(
                f"{session.record.name}: its memory is anonymous; give the snapshot's memory file "
                "(--memory-file)"
            )
        return
    pages_in_file = os.fstat(session.memory_file).st_size // PAGE_BYTES
    for region in session.record.regions:
        first = region.file_offset // PAGE_BYTES
        if first + region.pages > pages_in_file:
            raise PagerError(
                f"{session.record.memory_file}: ends before the region at {region.start:#x}"
            )
        entries = np.arange(first, first + region.pages, dtype=np.uint64)
        entries = (entries << np.uint64(34)) + np.uint64(memory_file_entry(0))
        begin = region.first_page
        session.table.index[begin : begin + region.pages] = entries


def resume(directory: Path, transport: Transport | None = None) -> Session:
    """Go on with a VM whose pager has died, wholly or in part. Needs no monitor.

    ``transport`` gives the descriptor if the VM handed it over again; else the copy inside the VM's
    process is taken. Kills what is left of the old pager; its fault handler's death harms nothing.
    The caller holds the supervisor's lock.
    """
    record = read_record(directory)
    for role in (Role.EVICTOR, Role.HANDLER):
        _end_role(directory, role)
    if transport is not None and transport.way is Way.HAND_OFF:
        descriptor = transport.open().ours
    else:
        descriptor = take_descriptor(record.pid, record.descriptor)
    session = _open(directory, record, descriptor)
    if record.way is Way.QEMU:
        try:
            _register(session)
        except (UserFaultFdError, ProcessGone) as error:
            raise PagerError(f"{record.name}: {error}") from error
    publish(directory, record.pid)
    return session


def _end_role(directory: Path, role: Role) -> None:
    """End the process that has a role of an earlier pager."""
    lock = RoleLock(directory, role)
    deadline = time.monotonic() + _KILL_SECONDS
    try:
        while (pid := lock.holder()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise PagerError(f"{directory}: process {pid} ({role.value}) does not end")
            time.sleep(0.005)
    finally:
        lock.release()
