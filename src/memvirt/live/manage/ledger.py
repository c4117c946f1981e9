# SPDX-License-Identifier: Apache-2.0
"""What was changed on this host and what it was before, on disk before anything is changed.

Whoever manages holds a lock on the file beside it, which ends with the process. A record whose lock
is free is the work of a manager that died: the next one goes on with it, or puts everything back.
The record lies under /run: nothing of what it speaks of outlives a boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from memvirt.live.errors import LiveError
from memvirt.live.process import Process

DEFAULT_DIRECTORY = Path("/run/memvirt/manage")
_FORMAT = 1


class AlreadyManaged(LiveError):
    """Another process manages the VMs of this host."""


@dataclass
class VmRecord:
    """One VM that was changed: the process, and what was before. None was not changed."""

    pid: int
    started: int  # clock ticks after the boot: with it a process number is unique
    name: str
    balloon: int | None = None  # bytes the guest had (``actual``)
    memory: int = 0  # bytes of RAM the VM had then; 0 if that is not on record
    stopped: bool = False  # by us
    paged_out: int = 0  # pages, at most, that we sent to swap and did not bring back


@dataclass
class Record:
    """All that was changed."""

    vms: list[VmRecord] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)  # by file of the kernel

    @property
    def empty(self) -> bool:
        return not self.vms and not self.settings


def start_time(pid: int) -> int:
    """Start time of a process, in clock ticks after the boot. Raises ProcessGone."""
    with Process(pid) as process:
        return process.start_time()


def _setting(path: Path) -> str:
    """What is in a kernel's file, as it can be written back. Raises OSError."""
    text = path.read_text().strip()
    # memory.oom_control has lines of several values, and takes the first one.
    return text.split()[1] if text.startswith("oom_kill_disable ") else text


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Ledger:
    """The record in ``directory``, held by this process. Use as a context manager.

    Raises AlreadyManaged if another process holds it, LiveError for a damaged record.
    """

    def __init__(self, directory: Path | None = None) -> None:
        chosen = os.environ.get("MEMVIRT_MANAGE_DIR")
        self.directory = directory or (Path(chosen) if chosen else DEFAULT_DIRECTORY)
        self.path = self.directory / "changes.json"
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise AlreadyManaged(
                f"{self.directory}: another memvirt manage is running; stop it first"
            ) from error
        try:
            self.record = self._read()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others manage; the record stays for them if it is not empty."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _read(self) -> Record:
        try:
            fields: dict[str, Any] = json.loads(self.path.read_text())
            if fields["format"] != _FORMAT:
                raise LiveError(f"{self.path}: written by another version of memvirt")
            if fields["boot"] != _boot():
                return Record()  # what it speaks of ended with that boot
            vms = [VmRecord(**vm) for vm in fields["vms"]]
            return Record(vms, {str(path): str(old) for path, old in fields["settings"].items()})
        except FileNotFoundError:
            return Record()
        except (ValueError, KeyError, TypeError) as error:
            raise LiveError(
                f"{self.path}: damaged ({error}); look at the balloons and at KSM yourself, then "
                "remove it"
            ) from error

    def find(self, pid: int, started: int) -> VmRecord | None:
        """The record of the process ``pid`` that started then; None if nothing was changed."""
        for vm in self.record.vms:
            if (vm.pid, vm.started) == (pid, started):
                return vm
        return None

    def vm(self, pid: int, started: int) -> VmRecord:
        """As ``find``, but a new record if nothing was changed yet. Change it, then ``save``."""
        vm = self.find(pid, started)
        if vm is None:
            vm = VmRecord(pid, started, f"process {pid}")
            self.record.vms.append(vm)
        return vm

    def forget(self, vm: VmRecord) -> None:
        """Everything of a VM is as it was, or it has ended."""
        if vm in self.record.vms:
            self.record.vms.remove(vm)
            self.save()

    def change_setting(self, path: Path, value: str) -> None:
        """Write ``value`` into a file of the kernel's, what was there kept on record before.

        Raises OSError, with nothing changed.
        """
        old = _setting(path)
        if str(path) not in self.record.settings:
            self.record.settings[str(path)] = old
            self.save()
        path.write_text(value)

    def put_back(self, path: Path) -> str | None:
        """Write what was in a kernel's file before, and forget it; None if that file has gone.

        Raises OSError; then it stays on record.
        """
        old: str | None = self.record.settings[str(path)]
        try:
            if _setting(path) != old:
                path.write_text(str(old))
        except FileNotFoundError:
            old = None
        del self.record.settings[str(path)]
        self.save()
        return old

    def put_all_back(self, names: Collection[str] | None = None) -> tuple[list[str], bool]:
        """Put the kernel's files back, the last change first; with ``names`` those files only.

        A line for each, and True if all of them are as they were. What failed stays on record.
        """
        lines, done, settings = [], True, self.record.settings
        for file, before in reversed(list(settings.items())):
            path = Path(file)
            if names is not None and path.name not in names:
                continue
            limit = path.with_name("memory.limit_in_bytes")
            if path.name == "memory.oom_control" and str(limit) in settings:
                lines.append(f"{file}: stays as it is: nobody must be killed for a low limit")
                done = False
                continue
            try:
                old = self.put_back(path)
            except OSError as error:
                lines.append(f"{file}: cannot be set back to {before}: {error.strerror}")
                done = False
            else:
                lines.append(
                    f"{file}: {'is not there any more' if old is None else f'{old} again'}"
                )
        return lines, done

    def before(self, path: Path) -> str:
        """What was in a kernel's file before it was changed, or is there now. Raises OSError."""
        return self.record.settings.get(str(path)) or _setting(path)

    def save(self) -> None:
        """Bring the record to disk, whole or not at all."""
        if self.record.empty:
            self.path.unlink(missing_ok=True)
            return
        fields = {"format": _FORMAT, "boot": _boot(), **asdict(self.record)}
        number, name = tempfile.mkstemp(prefix=".changes.", dir=self.directory)
        try:
            with os.fdopen(number, "w") as file:
                json.dump(fields, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
