# SPDX-License-Identifier: Apache-2.0
"""Debian's gdb on real guests, in both modes, while the host takes their pages away."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.gdb.server import GdbServer, GdbServerError, GdbSession
from memvirt.images import image_path
from memvirt.vmm.check import check_machine
from memvirt.vmm.content import COMPRESS
from memvirt.vmm.stores.compression_cache import CompressionCache
from tests.engine.own_build import own_build_only
from tests.small_guest import VIRTUALIZED, flat_guest

from .client import Client

ROOT = Path(__file__).resolve().parents[2]
needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled guest with its symbols; its code is that of the image in the package."""
    sources = tmp_path_factory.mktemp("guest") / "guests" / "bundled"
    ignored = shutil.ignore_patterns("build")
    shutil.copytree(ROOT / "guests" / "bundled", sources, ignore=ignored, symlinks=True)
    subprocess.run(["make", "-s", "-C", sources, "build/memvirt-guest.debug"], check=True)
    return sources / "build" / "memvirt-guest.debug"


def take_pages(vm: VirtualMachine) -> None:
    """Give every page another frame, then take all frames away."""
    vm.vmm.move(range(vm.vmm.pmap.pages))
    vm.vmm.unmap(range(vm.vmm.pmap.pages))


def debug(vm: VirtualMachine, script: str, symbols: Path | None, place: Path) -> str:
    """Run ``vm`` to its end under gdb with ``script``; what gdb said. Pages come and go."""
    vm.vmm.contents.set_store(COMPRESS, CompressionCache(vm.machine, vm.vm_id, 4096))
    settings = ("confirm off", "pagination off", "height 0", "width 0", "debuginfod enabled off")
    head = "".join(f"set {setting}\n" for setting in settings)
    commands = place.with_suffix(".gdb")
    commands.write_text(f"{head}target remote {place}\n{script}\n", encoding="utf-8")
    gdb = ["gdb", "-nx", "-batch", "-x", str(commands)] + ([str(symbols)] if symbols else [])
    with GdbServer(str(place)) as server:
        session = GdbSession(server, vm, lambda descriptor: True)
        with subprocess.Popen(
            gdb, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True,
        ) as process:  # fmt: skip
            try:
                session.wait_for_debugger()

                def between(vm: VirtualMachine) -> None:
                    take_pages(vm)
                    session.between_quanta()

                outcome = vm.run(timeout=300, on_quantum=between)
                session.finish(outcome)
                said, _ = process.communicate(timeout=120)
            finally:
                process.kill()
    assert check_machine(vm.machine, [vm.vmm]) == []
    return said


@needs_gdb
@own_build_only
@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_a_session_on_the_bundled_guest(paging: str, symbols: Path, tmp_path: Path) -> None:
    script = """
        printf "first %#lx cs %#x\\n", $rip, $cs
        break kernel_main
        continue
        printf "main %d cr0 %#lx lma %d\\n", $rip == (long)&kernel_main, $cr0, ($efer >> 10) & 1
        set $before = $rip
        stepi
        printf "moved %d\\n", $rip - $before > 0 && $rip - $before < 16
        x/i $rip
        delete
        hbreak *0x400000
        continue
        printf "user cs %#x, first byte %#x\\n", $cs, *(unsigned char*)0x400000
        monitor map 0x400000
        set $r15 = 0x1234
        printf "r15 %#lx\\n", $r15
        delete
        watch *(unsigned long*)&ticks
        continue
        continue
        printf "ticks %d\\n", *(unsigned long*)&ticks
        delete
        python
try:
    gdb.execute("x/gx 0x123456789000")
except gdb.error as error:
    print(error)
end
        detach
    """
    with VirtualMachine(Machine("128M", scatter_seed=1), memory="16M", paging=paging) as vm:
        vm.load(image_path("bundled"), append="workload=fill percent=20 passes=1")
        said = debug(vm, script, symbols, tmp_path / "gdb")
        assert vm.outcome is not None, said
        assert vm.outcome.reason is EndReason.SUCCESS, said
    assert "first 0x100020" in said
    assert "main 1 cr0 0x8" in said, said
    assert "moved 1" in said, said
    assert "Hardware watchpoint" in said
    changes = re.findall(r"Old value = (\d+)\nNew value = (\d+)\n", said)
    assert len(changes) == 2, said
    assert all(int(new) == int(old) + 1 for old, new in changes)
    assert f"ticks {changes[1][1]}" in said, said
    assert "user cs 0x2b" in said, said
    assert "gVA 0x0000000000400000" in said
    assert "guest physical" in said
    assert "r15 0x1234" in said
    assert "Cannot access memory at address 0x123456789000" in said
    assert vm.vmm.counts["brought_back"] > 10  # its pages were away, at stops and in between


@needs_gdb
@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_breakpoints_in_a_loop_and_a_death_to_look_at(paging: str, tmp_path: Path) -> None:
    guest = flat_guest("""
        xor     %eax, %eax
    again: inc  %eax
        cmp     $4, %eax
        jne     again
        movb    $0x99, (0x300000)
        lidt    nothing
        ud2                             # a triple fault
        .balign 8
    nothing: .skip 10
    """)
    script = """
        break *0x100002
        commands
          silent
          printf "eax %d\\n", $rax
          continue
        end
        continue
        printf "died at %#lx: %#x\\n", $rip, *(unsigned char*)0x300000
        continue
    """
    with VirtualMachine(Machine("64M", scatter_seed=1), memory="16M", paging=paging) as vm:
        vm.load(guest, protocol="flat")
        said = debug(vm, script, None, tmp_path / "gdb")
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.TRIPLE_FAULT, said
    assert [f"eax {n}" for n in range(4)] == [line for line in said.splitlines() if "eax" in line]
    assert "SIGSEGV" in said, said
    assert "0x99" in said, said
    assert "exited with code 03" in said, said


def boot(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "memvirt", "boot", "bundled", "--memory", "16M", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def where(process: subprocess.Popen[str]) -> str:
    """The place that the command says it waits at."""
    assert process.stderr is not None
    for line in process.stderr:
        if "target remote" in line:
            return line.split()[-1]
    raise AssertionError("it ended before it waited for gdb")


_IDLE = ("--append", "workload=idle percent=10 ticks=1000000000")


def _interrupt_and_detach(client: Client) -> None:
    assert client.ask("?").startswith("T05")
    client.send("vCont;c:1")
    client.send_raw(b"\x03")
    assert client.receive() == "T02thread:1;"
    assert len(client.ask("g")) > 500


def test_ctrl_c_stops_the_guest_detach_lets_it_go_and_kill_ends_it() -> None:
    with boot("--gdb", "0", *_IDLE) as process:
        try:
            place = where(process)
            with closing(Client(place)) as first:
                _interrupt_and_detach(first)
                assert first.ask("D") == "OK"
            with closing(Client(place)) as second:  # comes while the guest runs, and stops it
                assert second.ask("?") == "T02thread:1;"
                second.send("c")  # and is gone without a word: the guest goes on
            with closing(Client(place)) as third:
                assert third.ask("?") == "T02thread:1;"
                third.send("k")
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "stopped by the user (by its debugger)" in errors
    assert "Traceback" not in errors


def test_a_socket_of_the_user_alone_and_an_end_that_gdb_hears_of(tmp_path: Path) -> None:
    path = tmp_path / "gdb.socket"
    with boot("--gdb", str(path), "--append", "workload=fill percent=5 passes=1") as process:
        try:
            assert where(process) == str(path)
            assert path.stat().st_mode & 0o777 == 0o600
            with closing(Client(str(path))) as client:
                assert client.ask("c") == "W00"
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "verdict: success" in output
    assert not path.exists()


def test_ctrl_c_while_it_waits_for_gdb_ends_it() -> None:
    with boot("--gdb", "0") as process:
        try:
            where(process)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def _refusal(place: str) -> str:
    with pytest.raises(GdbServerError) as refused:
        GdbServer(place)
    return str(refused.value)


def test_places_that_cannot_be_listened_at(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "in use" in _refusal(str(file))
    assert file.read_text() == "mine"
    assert "65535" in _refusal("65536")
    assert "path" in _refusal("")
    assert "No such file" in _refusal(str(tmp_path / "absent" / "socket"))
    with GdbServer("0") as server:
        assert "in use" in _refusal(server.place.split(":")[1])
    path = tmp_path / "socket"
    with GdbServer(str(path)):
        assert "in use" in _refusal(str(path))


def test_a_socket_that_a_killed_run_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = GdbServer(str(path))
    server._socket.close()  # as the end of a killed process does
    assert path.exists()
    with GdbServer(str(path)) as again:
        assert os.path.samefile(again.place, path)
