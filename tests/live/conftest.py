# SPDX-License-Identifier: Apache-2.0
"""QEMU processes for the tests, and the host's state kept as it was."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memvirt.live import qmp
from memvirt.live.damon import ADMIN
from memvirt.live.discovery import DiscoveredVm, discover
from memvirt.live.ksm import KSM_DIRECTORY
from memvirt.live.vm import LiveVm
from tests.guests.conftest import LinuxGuest, linux_guest
from tests.waiting import until

__all__ = ["linux_guest"]

QEMU = "qemu-system-x86_64"
SECONDS = 240.0  # to boot or answer, on a busy machine
_PR_SET_THP_DISABLE = 41  # prctl(2)
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """A machine that is busy with something else is none that hangs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qmp, "CONNECT_SECONDS", SECONDS / 4)
        patch.setattr(qmp, "COMMAND_SECONDS", SECONDS / 4)
        yield


@contextlib.contextmanager
def without_large_pages(wanted: bool) -> Iterator[None]:
    """Processes started inside have no transparent large pages, and khugepaged leaves them alone:
    it fills holes and moves pages whenever it likes, also of a VM that is stopped."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_THP_DISABLE, int(wanted), 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)


def stop_in_kernel(vm: LiveVm) -> None:
    """Stop a Linux guest at an address of its kernel's: processes of its come and go, the kernel's
    addresses stay."""

    def stopped() -> bool:
        vm.ask().execute("stop")
        if vm.registers().privilege_level == 0:
            return True
        vm.ask().execute("cont")
        return False

    until(stopped, "the guest to be in its kernel", SECONDS)


class Console:
    """The serial console of a guest, by its socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(1.0)
        until(lambda: self._try_connect(path), "the serial console", SECONDS)
        self.text = ""
        self._commands = 0

    def _try_connect(self, path: Path) -> bool:
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        """What came until ``text``, with it."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.text[-2000:]}"
            with contextlib.suppress(TimeoutError):
                self.text += self._socket.recv(65536).decode("ascii", "replace")
        before, _, self.text = self.text.partition(text)
        return before + text

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """Carry out a shell command in the guest; what it printed."""
        self._commands += 1
        mark = f"done{self._commands}"
        self._socket.sendall(f'{command}\necho do""ne{self._commands}\n'.encode())
        return self.wait_for(mark, seconds)

    def close(self) -> None:
        self._socket.close()


class Qemu:
    """One QEMU process with a serial console, and unless told otherwise a QMP socket."""

    def __init__(
        self, name: str, *arguments: str, monitor: bool = True, large_pages: bool = True
    ) -> None:
        self.name = name
        # Socket paths are short: pytest's own directories may exceed what a socket takes.
        self.directory = Path(tempfile.mkdtemp(prefix="memvirt-"))
        self.socket = self.directory / "qmp"
        serial = self.directory / "serial"
        monitors = ["-qmp", f"unix:{self.socket},server=on,wait=off"] if monitor else []
        with without_large_pages(not large_pages):
            self.process = subprocess.Popen(
                [
                    QEMU, "-name", name, "-display", "none", "-nic", "none",
                    "-no-reboot", *monitors,
                    "-chardev", f"socket,id=serial,path={serial},server=on,wait=off",
                    "-serial", "chardev:serial", *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            self.console = Console(serial)
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def discovered(self) -> DiscoveredVm:
        return discover([self.pid])[0]

    def open(self) -> LiveVm:
        return LiveVm(self.discovered())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if hasattr(self, "console"):
            self.console.close()
        shutil.rmtree(self.directory)


@pytest.fixture(scope="session")
def start_qemu() -> Iterator[Callable[..., Qemu]]:
    """Starts QEMU processes, which end with the tests."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed: make packages")
    started: list[Qemu] = []

    def start(name: str, *arguments: str, **options: bool) -> Qemu:
        started.append(Qemu(name, *arguments, **options))
        return started[-1]

    try:
        yield start
    finally:
        for qemu in started:
            qemu.end()


@pytest.fixture(scope="session")
def start_linux(start_qemu: Callable[..., Qemu], linux_guest: LinuxGuest) -> Callable[..., Qemu]:
    """Starts the Linux test guest under TCG and waits for its shell."""

    def start(name: str, *arguments: str, large_pages: bool = True) -> Qemu:
        qemu = start_qemu(
            name, "-accel", "tcg", "-kernel", str(linux_guest.kernel), "-initrd",
            str(linux_guest.initrd), "-append", "console=ttyS0 quiet balloon=0 nokaslr",
            *arguments, large_pages=large_pages,
        )  # fmt: skip
        qemu.console.wait_for("guest# ")
        return qemu

    return start


@pytest.fixture(scope="session")
def anonymous_vm(start_linux: Callable[..., Qemu]) -> Qemu:
    """A guest with 5-level paging; private anonymous memory, and a balloon device."""
    return start_linux(
        f"anonymous-{os.getpid()}", "-m", "256M", "-cpu", "max", "-device", "virtio-balloon-pci",
        large_pages=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def memfd_vm(start_linux: Callable[..., Qemu]) -> Qemu:
    """A guest with 4-level paging and 5 GiB in a memfd, 3 of them above 4 GiB."""
    return start_linux(
        f"memfd-{os.getpid()}", "-m", "5G", "-cpu", "max,la57=off",
        "-machine", "q35,memory-backend=ram",
        "-object", "memory-backend-memfd,id=ram,size=5G,share=on", large_pages=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def paging_guest(
    tmp_path_factory: pytest.TempPathFactory, start_qemu: Callable[..., Qemu]
) -> Callable[[str], Qemu]:
    """Starts the guest of ``paging_guest.S`` in a paging mode and waits until it is there."""
    image = tmp_path_factory.mktemp("paging") / "guest.elf"
    subprocess.run(
        [
            "gcc", "-m32", "-nostdlib", "-static", "-Wl,-Ttext=0x100000", "-Wl,-e,start",
            "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-o", image, HERE / "paging_guest.S",
        ],
        check=True,
    )  # fmt: skip

    def start(letter: str) -> Qemu:
        qemu = start_qemu(
            f"paging-{letter}", "-accel", "tcg", "-m", "64M", "-kernel", str(image), "-append",
            letter,
        )  # fmt: skip
        qemu.console.wait_for("!")
        return qemu

    return start


@pytest.fixture
def host_state() -> Iterator[None]:
    """For tests that change KSM or DAMON: one at a time on this host, and both as before after."""
    path = Path("/run/lock/memvirt-host-tests")
    try:
        lock = path.open("w")
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}: tests that change the host take turns by it")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        knobs = ("pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan", "run")
        before = {
            name: (KSM_DIRECTORY / name).read_text()
            for name in knobs
            if (KSM_DIRECTORY / name).exists()
        }
        kdamonds = ADMIN / "kdamonds" / "nr_kdamonds"
        damon_before = kdamonds.read_text() if kdamonds.exists() else None
        try:
            yield
        finally:
            if before and before["run"].strip() == "0" and os.access(KSM_DIRECTORY, os.W_OK):
                (KSM_DIRECTORY / "run").write_text("2")  # unmerge what the test merged
            for name, value in before.items():
                if (KSM_DIRECTORY / name).read_text() != value:
                    (KSM_DIRECTORY / name).write_text(value)
            if damon_before is not None:
                assert kdamonds.read_text() == damon_before, "a test left DAMON changed"
