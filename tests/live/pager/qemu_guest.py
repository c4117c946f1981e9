# SPDX-License-Identifier: Apache-2.0
"""A QEMU VM whose guest verifies all it reads, and a pager of it in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

from memvirt.live.discovery import UnixAddress, find_vm
from memvirt.live.pager.attachment import Role, RoleLock, find_attachment
from memvirt.live.pager.page_states import PageTableFile, Word
from memvirt.live.pager.qemu import QemuTransport
from memvirt.live.pager.session import StoreOptions, attach, resume
from memvirt.live.pager.supervisor import Policy, Supervisor
from memvirt.live.qmp import QmpMonitor
from tests.waiting import until

MODULES = (
    "virtio/virtio", "virtio/virtio_ring", "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci", "block/virtio_blk",
    "virtio/virtio_balloon",
)  # fmt: skip
DISK_BYTES = 64 << 20
WORKERS = ("memory", "churn", "direct", "buffered", "cached")
_STARTED_SECONDS = 300.0


class VerifyingVm:
    """A running VM. ``name`` and the socket are its own; disks with and without direct I/O."""

    def __init__(
        self,
        directory: Path,
        kernel: Path,
        initrd: Path,
        *,
        memory: str = "192M",
        command_line: str = "memory=64 churn=16",
        backend: str = "share=on",
        disks: bool = True,
        kind: str = "memfd",
        balloon: str = "free-page-reporting=on",
        name: str = "",
        extra: tuple[str, ...] = (),
        group: Path | None = None,
    ) -> None:
        """``group``: the directory of the control group that it is started in."""
        self.name = name or f"paged-{os.getpid()}-{directory.name}"
        self.serial = directory / "serial.log"
        self.monitor_path = directory / "qmp-of-the-test"
        # An exact line of arguments: what each of them is for is told by its name.
        arguments = [
            # It, and with it its pager, does not outlive a test run that is killed.
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-name", self.name, "-accel", "tcg,thread=multi", "-smp", "2",
            "-m", memory, "-object", f"memory-backend-{kind},id=ram,size={memory},{backend}",
            "-machine", "q35,memory-backend=ram", "-nodefaults", "-no-user-config", "-nographic",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", f"console=ttyS0 quiet panic=-1 {command_line}",
            "-serial", f"file:{self.serial}",
            # The pager takes the first one, the test the second.
            "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off",
            "-qmp", f"unix:{self.monitor_path},server=on,wait=off",
            "-device",
            f"virtio-balloon-pci,id=balloon,{balloon}",
            *extra,
        ]  # fmt: skip
        if disks:
            for disk, cache in (
                ("a", "cache=none,aio=native"),
                ("b", "cache=writeback"),
                ("c", "cache=none,aio=threads"),
            ):
                image = directory / f"{disk}.img"
                with image.open("wb") as file:
                    file.truncate(DISK_BYTES)
                drive = f"file={image},format=raw,if=none,id={disk},{cache}"
                arguments += ["-drive", drive, "-device", f"virtio-blk-pci,drive={disk}"]
        if group is not None:  # from its first page on
            join = 'echo $$ > "$0" && exec "$@"'
            arguments = ["sh", "-c", join, str(group / "cgroup.procs"), *arguments]
        self.log = (directory / "qemu.log").open("wb")
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.pid = self.process.pid

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"QEMU ended: {Path(self.log.name).read_text()}")
            return self.serial.exists() and "verify: ready" in self.serial.read_text("latin1")

        until(ready, "the guest is ready", _STARTED_SECONDS)

    def results(self) -> dict[str, tuple[int, int]]:
        """For each worker the operations so far, and how many words were wrong."""
        text = self.serial.read_text("latin1")
        return {
            worker: (int(operations), int(wrong))
            for worker, operations, wrong in re.findall(
                r"^verify: (\w+) ops (\d+) wrong (\d+)\r?$", text, re.MULTILINE
            )
        }

    def wait_for_progress(self, workers: tuple[str, ...] = WORKERS, seconds: float = 240.0) -> None:
        """Every worker reports more operations than it has now."""
        before = self.results()

        def progressed() -> bool:
            now = self.results()
            return all(now.get(w, (0, 0))[0] > before.get(w, (0, 0))[0] for w in workers)

        until(progressed, f"all of {workers} go on; at {self.results()}", seconds)

    def assert_nothing_wrong(self) -> None:
        text = self.serial.read_text("latin1")
        assert "WRONG" not in text, re.findall("verify: .* WRONG.*", text)[:5]
        assert all(wrong == 0 for _, wrong in self.results().values())

    def monitor(self) -> QmpMonitor:
        """A QMP socket the pager leaves alone."""
        return QmpMonitor(UnixAddress(str(self.monitor_path)), name=self.name, pid=self.pid)

    def threads(self) -> list[str]:
        """What each thread of QEMU that does not sleep in a futex is doing."""
        found = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                waits = (task / "wchan").read_text()
                if "futex" not in waits:
                    state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                    found.append(f"{(task / 'comm').read_text().strip()} {state} {waits}")
        return found

    def open_files(self) -> list[str]:
        links = []
        for entry in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                links.append(os.readlink(f"/proc/{self.pid}/fd/{entry}"))
        return links

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


class PagerProcess:
    """A supervisor forked from the test, with its children. Its lines are in ``log``."""

    def __init__(
        self,
        vm: VerifyingVm,
        store: StoreOptions,
        policy: Policy,
        log: Path,
        *,
        again: bool = False,
    ) -> None:
        self.vm = vm
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                with log.open("a", buffering=1) as file:
                    os.dup2(file.fileno(), 2)
                    sys.stderr = file  # the children's, too
                    status = _supervise(vm.name, store, policy, again, file)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        self.status: int | None = None
        self.directory = self._attached()
        self.table = PageTableFile(self.directory / "pages")

    def _attached(self) -> Path:
        def attached() -> bool:
            self._check()
            directory = find_attachment(self.vm.pid)
            if directory is None or self.role(Role.SUPERVISOR, directory) != self.pid:
                return False
            parent = Path(f"/proc/{self.role(Role.HANDLER, directory)}/stat")
            return parent.exists() and parent.read_text().split()[3] == str(self.pid)

        until(attached, f"the pager attaches: {self.text()}")
        directory = find_attachment(self.vm.pid)
        assert directory is not None
        return directory

    def _check(self) -> None:
        if self.ended():
            raise AssertionError(f"the pager ended with {self.status}: {self.text()}")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def role(self, role: Role, directory: Path | None = None) -> int | None:
        """The process that has a role now."""
        lock = RoleLock(directory or self.directory, role)
        try:
            return lock.holder()
        finally:
            lock.release()

    def kill_role(self, role: Role) -> bool:
        pid = self.role(role) if self.directory.exists() else None
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def word(self, word: Word) -> int:
        return self.table.words[word]

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait_for_evictions(self, pages: int, seconds: float = 300.0) -> None:
        before = self.word(Word.EVICTED)

        def evicted() -> bool:
            self._check()
            return self.word(Word.EVICTED) >= before + pages

        until(evicted, f"{pages} pages are evicted: {self.table.message} {self.text()}", seconds)

    def detach(self, seconds: float = 60.0) -> None:
        """Ctrl-C; everything must be back and nothing left."""
        os.kill(self.pid, signal.SIGINT)
        until(self.ended, f"the pager detaches: {self.text()}", seconds)
        assert self.status == 0, self.text()
        assert not self.directory.exists()

    def kill(self) -> None:
        """End everything of it, as kill -9 would, the processes it started included."""
        roles = (Role.EVICTOR, Role.HANDLER)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            until(self.ended, "the supervisor ends")
        for role in roles:
            while self.directory.exists() and self.kill_role(role):
                time.sleep(0.01)


def _supervise(name: str, store: StoreOptions, policy: Policy, again: bool, log: TextIO) -> int:
    transport = QemuTransport(find_vm(name))
    known = find_attachment(transport.pid)
    if again:
        assert known is not None, "nothing to go on with"
        lock = RoleLock(known, Role.SUPERVISOR)
        assert lock.acquire()
        session = resume(known, transport)
    else:
        session = attach(transport, store)
        lock = RoleLock(session.directory, Role.SUPERVISOR)
        assert lock.acquire()
    supervisor = Supervisor(session, transport, policy, lambda text: print(text, file=log))
    detached = supervisor.run()
    print("detached" if detached else "the VM ended", file=log)
    return 0
