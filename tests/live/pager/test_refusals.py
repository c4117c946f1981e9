# SPDX-License-Identifier: Apache-2.0
"""What must not be paged is refused in one line, before anything is touched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memvirt.live.discovery import UnixAddress, find_vm
from memvirt.live.errors import LiveError
from memvirt.live.pager import collisions
from memvirt.live.pager.attachment import PagerError
from memvirt.live.pager.evictor import NotNow
from memvirt.live.pager.page_states import PageTableFile
from memvirt.live.pager.ptrace import InjectionError, run_system_call
from memvirt.live.pager.qemu import QemuTransport
from memvirt.live.pager.session import StoreOptions, attach
from memvirt.live.qmp import QmpMonitor

SHARED = ("-object", "memory-backend-memfd,id=ram,size=64M,share=on")
BACKEND = ("-machine", "q35,memory-backend=ram")
StartIdle = Callable[..., QemuTransport]


@pytest.fixture
def start_idle(needs_userfaultfd: None, runtime: Path, tmp_path: Path) -> Iterator[StartIdle]:
    """A QEMU that has not begun to run its guest, with the arguments given."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (make packages)")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, stopped: bool = False) -> QemuTransport:
        name = f"idle-{os.getpid()}-{len(processes)}"
        directory = tmp_path / name
        directory.mkdir(mode=0o777)
        command = ["qemu-system-x86_64", "-name", name, "-m", "64M", "-nodefaults", "-display"]
        command += ["none", "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off", *arguments]
        process = subprocess.Popen([*command, *(["-S"] if stopped else [])])
        processes.append(process)
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, "QEMU does not start"
            assert time.monotonic() < deadline, "QEMU's monitor does not answer"
            with contextlib.suppress(LiveError):
                QmpMonitor(UnixAddress(str(directory / "qmp")), name=name).close()
                break
            time.sleep(0.02)
        return QemuTransport(find_vm(str(process.pid)))

    yield start
    for process in processes:
        process.kill()
        process.wait()


def _refusal(transport: QemuTransport, tmp_path: Path) -> str:
    """The one line; nothing has been touched."""
    with pytest.raises(LiveError) as caught:
        attach(transport, StoreOptions(tmp_path / "store"))
    assert "\n" not in str(caught.value)
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{transport.pid}/fd")]
    assert not any("userfaultfd" in link for link in links)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())
    return str(caught.value)


def test_anonymous_memory_is_refused_with_the_way_to_share_it(
    start_idle: StartIdle, tmp_path: Path
) -> None:
    refusal = _refusal(start_idle(), tmp_path)
    assert "anonymous memory" in refusal
    assert "memory-backend-memfd" in refusal


def test_a_private_memfd_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    private = ("-object", "memory-backend-memfd,id=ram,size=64M,share=off")
    assert "not a shared memfd" in _refusal(start_idle(*private, *BACKEND), tmp_path)


def test_locked_memory_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    transport = start_idle(*SHARED, *BACKEND, "-overcommit", "mem-lock=on")
    assert "mem-lock" in _refusal(transport, tmp_path)


def test_io_uring_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    drive = f"file={image},format=raw,if=none,id=d,cache=none,aio=io_uring"
    try:
        transport = start_idle(*SHARED, *BACKEND, "-drive", drive)
    except AssertionError:
        pytest.skip("this QEMU, or kernel, has no io_uring")
    assert "io_uring" in _refusal(transport, tmp_path)


def test_a_second_mapping_of_the_memory_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    transport = start_idle(*SHARED, *BACKEND)
    for entry in os.scandir(f"/proc/{transport.pid}/fd"):
        if os.readlink(entry.path).startswith("/memfd:"):
            memory = os.open(entry.path, os.O_RDWR)
    import mmap  # noqa: PLC0415

    with mmap.mmap(memory, 1 << 20):
        assert "mapped a second time" in _refusal(transport, tmp_path)
    os.close(memory)


def test_postcopy_switched_on_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    transport = start_idle(*SHARED, *BACKEND)
    (address,) = find_vm(str(transport.pid)).monitors
    assert isinstance(address, UnixAddress)
    with QmpMonitor(address, name="vm") as monitor:
        capability = {"capability": "postcopy-ram", "state": True}
        monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
    assert "postcopy" in _refusal(transport, tmp_path)


def test_an_incoming_vm_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    transport = start_idle(*SHARED, *BACKEND, "-incoming", "defer")
    assert "inmigrate" in _refusal(transport, tmp_path)


def test_memory_that_can_be_plugged_out_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    module = ("-object", "memory-backend-memfd,id=more,size=64M,share=on")
    transport = start_idle(
        *SHARED, *BACKEND, "-m", "64M,slots=2,maxmem=256M", *module, "-device",
        "pc-dimm,memdev=more",
    )  # fmt: skip
    assert "memory that can be plugged out (dimm)" in _refusal(transport, tmp_path)


def test_a_device_that_is_plugged_in_later_ends_evictions_and_paging(
    start_idle: StartIdle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is played by a file that QEMU opens when it is told to."""
    transport = start_idle(*SHARED, *BACKEND)
    file = tmp_path / "vfio" / "12"
    file.parent.mkdir()
    file.write_bytes(bytes(1 << 20))
    monkeypatch.setitem(collisions._DEVICE_FILES, f"{file.parent}/", "VFIO")
    table = PageTableFile.create(tmp_path / "pages", 16)
    supervision = transport.supervision(table)
    try:
        supervision.drain()
        assert supervision.migrating() == ""
        node = {"driver": "file", "node-name": "device", "filename": str(file)}
        supervision._monitor().execute("blockdev-add", node)
        with pytest.raises(NotNow, match=rf"nothing is evicted: it has {file} open: VFIO"):
            supervision.drain()
        assert supervision.migrating() == f"it has {file} open: VFIO"
    finally:
        supervision.close()
    assert "VFIO; this is not proved yet" in _refusal(transport, tmp_path)


def test_another_tracer_is_refused(start_idle: StartIdle, tmp_path: Path) -> None:
    transport = start_idle(*SHARED, *BACKEND)
    ready, ready_write = os.pipe()
    go, go_write = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        libc = ctypes.CDLL(None)
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        result = libc.ptrace(0x4206, transport.pid, 0, 0)  # PTRACE_SEIZE
        os.write(ready_write, b"1" if result == 0 else b"0")
        os.close(go_write)
        os.read(go, 1)
        os._exit(0)
    os.close(go)
    assert os.read(ready, 1) == b"1"
    assert f"process {tracer} traces it" in _refusal(transport, tmp_path)
    with pytest.raises(InjectionError, match="cannot be traced"):
        run_system_call(transport.pid, 39)
    os.close(go_write)
    os.waitpid(tracer, 0)
    for descriptor in (ready, ready_write):
        os.close(descriptor)


def test_a_full_disk_is_told_before_anything_is_touched(
    start_idle: StartIdle, small_disk: Path
) -> None:
    transport = start_idle(*SHARED, *BACKEND)
    with (small_disk / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 16))
            ballast.flush()
    with pytest.raises(PagerError, match="No space left") as caught:
        attach(transport, StoreOptions(small_disk / "store"))
    assert "\n" not in str(caught.value)
    assert not any(
        "userfaultfd" in os.readlink(entry.path)
        for entry in os.scandir(f"/proc/{transport.pid}/fd")
    )


def test_an_injected_system_call_leaves_the_process_as_it_was() -> None:
    # Most of the time it sleeps or waits for input, as the threads of QEMU do.
    script = (
        "import select, sys, time\nprint('up', flush=True)\n"
        "while not select.select([sys.stdin], [], [], 0.02)[0]: time.sleep(0.02)\n"
        "print('slept', sys.stdin.read(), flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["python3", "-c", script], text=True, **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        for _ in range(20):
            assert run_system_call(child.pid, 39) == child.pid  # getpid
            assert run_system_call(child.pid, 3, 999) == -9  # close: EBADF
        child.stdin.write("enough")
        child.stdin.close()
        assert child.stdout.read() == "slept enough\n"
    assert child.returncode == 0


def test_injection_into_nothing_is_one_clear_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(InjectionError, match="ended"):
        run_system_call(child.pid, 39)


@pytest.mark.parametrize("arguments", [("-sandbox", "on"), ("-runas", "nobody")])
def test_confined_qemus_are_attached_and_left_clean(
    start_idle: StartIdle, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    if arguments[0] == "-runas" and not Path("/dev/userfaultfd").exists():
        pytest.skip("no /dev/userfaultfd (Linux 6.1)")
    transport = start_idle(*SHARED, *BACKEND, *arguments)
    session = attach(transport, StoreOptions(tmp_path / "store"))
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{transport.pid}/fd")]
    assert links.count("anon_inode:[userfaultfd]") == 1
    assert "/dev/userfaultfd" not in links
    for region in session.record.regions:
        session.faults.unregister(region.start, region.size)
    session.end()
    transport.close_remote(session.record.descriptor)
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{transport.pid}/fd")]
    assert "anon_inode:[userfaultfd]" not in links
