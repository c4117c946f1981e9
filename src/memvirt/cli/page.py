# SPDX-License-Identifier: Apache-2.0
"""``memvirt page``: the VMkernel as the pager of a running VM that is not ours (experimental)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memvirt.live.discovery import find_vm
from memvirt.live.errors import LiveError
from memvirt.live.pager.attachment import (
    PagerError,
    Role,
    RoleLock,
    Way,
    all_attachments,
    find_attachment,
    read_record,
)
from memvirt.live.pager.handoff import HandOffTransport, listen
from memvirt.live.pager.page_states import NOT_DETACHED, PageTableFile
from memvirt.live.pager.qemu import QemuTransport
from memvirt.live.pager.session import Session, StoreOptions, attach, resume
from memvirt.live.pager.status import PagingStatus, status_of
from memvirt.live.pager.supervisor import Policy, Supervisor
from memvirt.live.pager.transport import Transport


@dataclass(frozen=True)
class PageOptions:
    """What ``memvirt page`` was asked for. ``interval`` seconds lie between two status lines."""

    policy: Policy
    store: StoreOptions
    interval: float = 5.0


def _say(text: str) -> None:
    print(f"memvirt page: {text}", flush=True)


def _transport_of(vm: str) -> QemuTransport:
    return QemuTransport(find_vm(vm))


def page_vm(vm: str, options: PageOptions) -> int:
    """Page a QEMU VM until it ends or a signal comes; the exit status."""
    transport = _transport_of(vm)
    return _page(transport, find_attachment(transport.pid), options, None)


def page_hand_off(
    path: Path, options: PageOptions, *, memory_file: Path | None, no_direct_io: bool
) -> int:
    """Wait for a VMM to hand its userfaultfd over at a socket, and page it; the exit status."""
    server = listen(path)
    try:
        _say(f"waiting for a VMM at {path}")
        connection, _ = server.accept()
    finally:
        server.close()
        path.unlink(missing_ok=True)
    with connection:
        transport = HandOffTransport.accepted(connection, no_direct_io=no_direct_io)
        known = find_attachment(transport.pid)
        return _page(transport, known, options, memory_file, transport.take_messages)


def _page(
    transport: Transport,
    known: Path | None,
    options: PageOptions,
    memory_file: Path | None,
    turn: Callable[[], None] = lambda: None,
) -> int:
    if known is not None:
        lock = _supervisor_lock(transport.name, known)
        session = resume(known, transport)
        _say(f"{transport.name}: an earlier pager died; going on with what it has stored")
    else:
        session = attach(transport, options.store, memory_file)
        lock = _supervisor_lock(transport.name, session.directory)
    lines = _StatusLines(session, options.interval)

    def each_turn() -> None:
        turn()
        lines()

    supervisor = Supervisor(session, transport, options.policy, _say, each_turn)
    try:
        return _run(supervisor, transport)
    finally:
        lock.release()


def _run(supervisor: Supervisor, transport: Transport) -> int:
    detached = supervisor.run()
    _say(f"{transport.name}: " + ("detached, all of it is in memory" if detached else "it ended"))
    return 0


def _supervisor_lock(name: str, directory: Path) -> RoleLock:
    lock = RoleLock(directory, Role.SUPERVISOR)
    if not lock.acquire():
        holder = lock.holder()
        lock.release()
        raise PagerError(f"{name}: is paged already, by process {holder}; --detach ends that")
    return lock


class _StatusLines:
    """A line now and then."""

    def __init__(self, session: Session, interval: float) -> None:
        self._session = session
        self._interval = interval
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            session = self._session
            _say(status_of(session.directory, session.table, session.memory).line())


def detach(vm: str) -> int:
    """End the paging of a VM, whatever is left of its pager; the exit status."""
    directory = _attachment_named(vm)
    record = read_record(directory)
    transport: Transport
    if record.way is Way.HAND_OFF:
        transport = HandOffTransport.resumed(record.pid, no_direct_io=False)
    else:
        transport = _transport_of(str(record.pid))
    lock = RoleLock(directory, Role.SUPERVISOR)
    if lock.acquire():
        session = resume(directory, transport)
        supervisor = Supervisor(
            session, transport, Policy(), _say, _StatusLines(session, interval=5.0)
        )
        supervisor.leave("--detach")
        return _run(supervisor, transport)
    holder = lock.holder()
    lock.release()
    if holder is not None:
        _ask_to_detach(holder, directory, transport.name)
    _say(f"{transport.name}: detached, all of it is in memory")
    return 0


def _ask_to_detach(supervisor: int, directory: Path, name: str) -> None:
    """Wait until the other pager has detached; raises PagerError if it says that it cannot."""
    table = PageTableFile(directory / "pages")
    if table.message.startswith(NOT_DETACHED):
        table.message = ""  # of an earlier try
    before = table.count_stored()
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGTERM)
    shown = time.monotonic()
    while directory.exists():
        if not Path(f"/proc/{supervisor}").exists() and directory.exists():
            raise PagerError(f"{name}: its pager ended without detaching; run --detach again")
        if table.message.startswith(NOT_DETACHED):
            raise PagerError(f"{name}: {table.message}")
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            _say(f"{name}: {table.count_stored()} of {before} pages are still out")
        time.sleep(0.02)


def show_status(vm: str | None, *, as_json: bool) -> int:
    """Print what is known of one paged VM, or of all."""
    if vm is None:
        directories = all_attachments()
    else:
        directories = [_attachment_named(vm)]
    statuses: list[PagingStatus] = []
    for directory in directories:
        with contextlib.suppress(LiveError, OSError, ValueError):
            statuses.append(status_of(directory, PageTableFile(directory / "pages")))
    if as_json:
        print(json.dumps([status.as_json() for status in statuses], indent=2))
    elif not statuses:
        print("no VM is paged by memvirt on this host")
    else:
        for status in statuses:
            print(status.line())
    return 0


def _attachment_named(vm: str) -> Path:
    if vm.isdigit():
        directory = find_attachment(int(vm))
    else:
        directory = find_attachment(find_vm(vm).pid)
    if directory is None:
        raise PagerError(f"{vm}: is not paged")
    return directory
