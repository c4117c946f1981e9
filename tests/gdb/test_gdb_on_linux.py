# SPDX-License-Identifier: Apache-2.0
"""Debian's gdb at ``memvirt boot --gdb`` on Debian's kernel, by the addresses of its symbols.

Debian leaves System.map out of the kernel's package; so the kernel is asked for its own table of
symbols first (``nokaslr``: the second boot has the same addresses).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from tests.engine.own_build import own_build_only
from tests.guests.conftest import LinuxGuest, build_linux_guest
from tests.small_guest import VIRTUALIZED

from .test_gdb import needs_gdb, where

pytestmark = pytest.mark.acceptance

_SYMBOLS = ("start_kernel", "linux_banner", "saved_command_line", "jiffies", "__x64_sys_newuname")
_SETTINGS = "".join(
    f"set {setting}\n"
    for setting in (
        "confirm off",
        "pagination off",
        "height 0",
        "width 0",
        "debuginfod enabled off",
    )
)


@pytest.fixture(scope="module")
def guest() -> LinuxGuest:
    return build_linux_guest()


@pytest.fixture(scope="module")
def symbols(guest: LinuxGuest) -> dict[str, int]:
    """What ``/proc/kallsyms`` of the guest says."""
    with VirtualMachine(Machine("320M"), memory="256M", paging="nested") as vm:
        vm.load(guest.kernel, initrd=guest.initrd, append="console=ttyS0 quiet nokaslr")
        vm.wakes_on_input = True
        for _ in range(2000):
            if b"guest# " in vm.serial_log or vm.run_quantum() is not None:
                break
        vm.type(f"grep -E ' ({'|'.join(_SYMBOLS)})$' /proc/kallsyms; poweroff\n".encode())
        vm.run(timeout=300)
        said = bytes(vm.serial_log).decode("ascii", "replace")
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.POWER_OFF, said[-2000:]
    found = re.findall(r"^([0-9a-f]{16}) \w (\S+)", said, re.MULTILINE)
    addresses = {name: int(address, 16) for address, name in found}
    assert set(addresses) >= set(_SYMBOLS), said[-2000:]
    return addresses


@needs_gdb
@own_build_only
@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_a_session_on_linux(
    paging: str, guest: LinuxGuest, symbols: dict[str, int], tmp_path: Path
) -> None:
    at = {name: f"{address:#x}" for name, address in symbols.items()}
    script = f"""
        hbreak *{at["start_kernel"]}
        continue
        printf "start %d cs %#x paging %d lma %d\\n", $rip == {at["start_kernel"]}, $cs, \\
            ($cr0 >> 31) & 1, ($efer >> 10) & 1
        printf "banner %s\\n", (char*){at["linux_banner"]}
        set $before = $rip
        stepi
        printf "moved %d\\n", $rip != $before
        delete
        break *{at["__x64_sys_newuname"]}
        continue
        printf "uname cs %#x, at it %d\\n", $cs, $rip == {at["__x64_sys_newuname"]}
        printf "command line %s\\n", *(char**){at["saved_command_line"]}
        delete
        watch *(unsigned long*){at["jiffies"]}
        continue
        continue
        delete
        monitor map {at["jiffies"]}
        continue
    """
    place = tmp_path / "gdb"
    commands = tmp_path / "session.gdb"
    commands.write_text(f"{_SETTINGS}target remote {place}\n{script}\n", encoding="utf-8")
    boot = [
        sys.executable, "-m", "memvirt", "boot", str(guest.kernel), "--initrd", str(guest.initrd),
        "--memory", "256M", "--paging", paging, "--gdb", str(place),
        "--append", "console=ttyS0 quiet nokaslr workload=signals",
    ]  # fmt: skip
    with subprocess.Popen(
        boot, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            where(process)
            done = subprocess.run(
                ["gdb", "-nx", "-batch", "-x", str(commands)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            said = done.stdout + done.stderr
            output, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert "start 1 cs 0x10 paging 1 lma 1" in said, said
    assert "banner Linux version 6." in said, said
    assert "moved 1" in said, said
    assert "uname cs 0x10, at it 1" in said, said
    assert "workload=signals" in said, said
    changes = re.findall(r"Old value = (\d+)\nNew value = (\d+)\n", said)
    assert len(changes) == 2, said
    assert all(int(new) > int(old) for old, new in changes), said
    assert int(changes[1][0]) == int(changes[0][1])
    assert f"gVA {symbols['jiffies']:#018x}" in said, said
    assert "exited normally" in said, said
    assert process.returncode == 0, errors
    assert "signals: verified" in output
