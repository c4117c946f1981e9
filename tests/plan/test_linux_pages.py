# SPDX-License-Identifier: Apache-2.0
"""What Linux uses its pages for, beside what Linux itself says of that moment."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from memvirt import Machine, PagingMode, VirtualMachine
from memvirt.cli.main import app
from memvirt.live.vm import open_kernel_pages
from memvirt.observe.snapshot import save_snapshot
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.dumps.dump import Dump, FileDump
from memvirt.plan.dumps.live import copy_live_vm
from memvirt.plan.linux.classify import uses_of_dump
from memvirt.plan.linux.kernel import find_kernel
from memvirt.plan.linux.memory_map import MemoryMap
from memvirt.plan.linux.page_use import PageUse
from memvirt.plan.linux.struct_page import _page_table_type
from memvirt.plan.linux.vmcoreinfo import kernel_texts, parse_vmcoreinfo
from tests.guests.conftest import LinuxGuest, linux_guest
from tests.live.conftest import Qemu, start_linux, start_qemu

__all__ = ["linux_guest", "start_linux", "start_qemu"]

PAGE = 4096
# Pages that are known by their content: in a tmpfs file (rootfs), in a ramfs file, of a process.
SHARED, CACHED, ANONYMOUS = (
    np.frombuffer(letter * PAGE, np.uint8) for letter in (b"S", b"C", b"A")
)
PREPARE = (
    "pages() { dd if=/dev/zero bs=4096 count=$2 2>/dev/null | tr '\\000' $1; }",
    "mkdir /ram; mount -t ramfs ram /ram; pages S 5120 > /file; pages C 3072 > /ram/file",
    # tail keeps what it reads until there is no more; 'ready' comes through the same pipe behind.
    "(pages A 2048; echo > /ready; sleep 100000) | tail -c 8388608 > /dev/null &",
    "until [ -e /ready ]; do sleep 0.1; done",
)
# Fold the processors' own counts into the global ones first, so that what is read is exact.
ASK = "echo 1 > /proc/sys/vm/stat_refresh; cat /proc/meminfo /proc/zoneinfo"
# The kernel and the processes that ask come and go between answer and dump: this is far below what
# each use has here, and a use that is taken for another shows.
SLACK = 512
DUMP_SECONDS = 240.0
NAME = f"page-use-{os.getpid()}"  # other tests on this host may have such a VM


def texts_of(dump: Dump) -> tuple[int, ...]:
    content = dump.read(0, dump.pages)
    return tuple(dump.ppns(0, dump.pages)[kernel_texts(content)].tolist())


def pages_of(report: str, name: str) -> int:
    """A line of /proc/meminfo, in pages."""
    found = re.search(rf"^{re.escape(name)}:\s+(\d+) kB", report, re.MULTILINE)
    assert found, report
    return int(found[1]) // 4


def free_pages(report: str) -> int:
    """Free pages of /proc/zoneinfo, those on processors' lists included."""
    in_blocks = sum(map(int, re.findall(r"pages free\s+(\d+)", report)))
    return in_blocks + sum(map(int, re.findall(r"count:\s+(\d+)", report)))


def check(dump: Dump, report: str) -> None:
    """Against /proc/meminfo and /proc/zoneinfo (Documentation/filesystems/proc.rst)."""
    found = uses_of_dump(dump, texts_of(dump))
    assert found.release.startswith("6."), found.problem
    count = dict(zip(PageUse, np.bincount(found.uses, minlength=len(PageUse)), strict=True))
    assert sum(count.values()) == dump.pages
    # Before the tables are added that Linux does not count: its own, and processes' upper ones.
    memory_map = MemoryMap(find_kernel(dump, texts_of(dump)))
    typed = sum(
        int((section.uses == PageUse.PAGE_TABLE).sum())
        for section in memory_map.sections(dump.ppns(0, dump.pages))
    )
    cached = pages_of(report, "Cached") + pages_of(report, "Buffers")
    for counted, expected in (
        (count[PageUse.FREE], free_pages(report)),
        (count[PageUse.PAGE_CACHE] + count[PageUse.SHARED_MEMORY], cached),
        (count[PageUse.SHARED_MEMORY], pages_of(report, "Shmem")),
        (count[PageUse.ANONYMOUS], pages_of(report, "AnonPages")),
    ):
        assert abs(counted - expected) <= SLACK, (count, report)
    assert abs(typed - pages_of(report, "PageTables")) <= 64
    assert count[PageUse.PAGE_TABLE] > typed > 0
    # Large kmalloc areas are in Linux's figure, and look like any memory of the kernel's.
    slab = pages_of(report, "Slab")
    assert slab * 0.8 < count[PageUse.SLAB] <= slab + SLACK
    known_by_content(dump, found.uses)


def known_by_content(dump: Dump, uses: np.ndarray) -> None:  # type: ignore[type-arg]
    """Copies that the guest has dropped since (in pipes, buffers) may be free or anything else."""
    content = dump.read(0, dump.pages)
    for page, use, pages in (
        (SHARED, PageUse.SHARED_MEMORY, 5120),
        (CACHED, PageUse.PAGE_CACHE, 3072),
        (ANONYMOUS, PageUse.ANONYMOUS, 2024),  # up to 16 are in the pipe still
    ):
        mine = uses[(content == page).all(axis=1)]
        assert pages <= int((mine == use).sum()) <= pages + 64
        others = {PageUse.SHARED_MEMORY, PageUse.PAGE_CACHE, PageUse.PAGE_TABLE, PageUse.OUTSIDE}
        assert not np.isin(mine, sorted(others - {use})).any()


@dataclass(frozen=True)
class Stopped:
    """A stopped guest of QEMU, what Linux said just before, and its dumps by format."""

    qemu: Qemu
    report: str
    dumps: dict[str, Path]


@pytest.fixture(scope="module")
def stopped(
    start_linux: Callable[..., Qemu], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stopped]:
    """Debian's kernel, its addresses randomized, half of its memory above 4 GiB."""
    folder = tmp_path_factory.mktemp("stopped")
    qemu = start_linux(
        NAME, "-m", "256M", "-machine", "pc,max-ram-below-4g=128M",
        "-append", "console=ttyS0 quiet balloon=0",
    )  # fmt: skip
    for command in PREPARE:
        qemu.console.run(command)
    report = qemu.console.run(ASK)
    dumps = {"elf": folder / "elf", "kdump-zlib": folder / "kdump-zlib"}
    with qemu.open() as vm:
        monitor = vm.ask()
        monitor.execute("stop")
        for kind, path in dumps.items():
            where = {"paging": False, "protocol": f"file:{path}"}
            form = {} if kind == "elf" else {"format": kind}
            monitor.execute("dump-guest-memory", where | form, timeout=DUMP_SECONDS)
    yield Stopped(qemu, report, dumps)
    shutil.rmtree(folder)


@pytest.mark.qemu
def test_a_dump_of_qemu(stopped: Stopped) -> None:
    elf = open_dump(stopped.dumps["elf"])
    check(elf, stopped.report)
    uses = uses_of_dump(elf, texts_of(elf)).uses
    kdump = open_dump(stopped.dumps["kdump-zlib"])
    at = np.array([elf.position(ppn) for ppn in kdump.ppns(0, kdump.pages)])
    assert (kdump.read(0, kdump.pages) == elf.read(0, elf.pages)[at]).all()
    assert (uses_of_dump(kdump, texts_of(kdump)).uses == uses[at]).all()
    # A kernel that is told of by a note needs not be looked for.
    assert isinstance(elf, FileDump)
    text = elf.read(elf.position(texts_of(elf)[0]), 1).tobytes()
    assert (uses_of_dump(replace(elf, vmcoreinfo=text), ()).uses == uses).all()
    assert "no Linux kernel" in uses_of_dump(elf, ()).problem


@pytest.mark.qemu
def test_a_copy_of_a_live_vm_holds_what_the_dump_holds(stopped: Stopped, tmp_path: Path) -> None:
    kernel, _ = open_kernel_pages()
    seen = []
    copied = copy_live_vm(
        stopped.qemu.discovered(), tmp_path, 1e12, kernel, lambda *step: seen.append(step)
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    last, total = seen[-1]
    assert last == total
    assert 255 << 20 < total <= 256 << 20  # VGA's window lies over a part of it
    assert copied.read + copied.empty + copied.missing == total // PAGE
    copy, elf = open_dump(copied.path), open_dump(stopped.dumps["elf"])
    assert copy.pages == copied.read + copied.empty
    at = np.array([elf.position(ppn) for ppn in copy.ppns(0, copy.pages)])
    assert (at >= 0).all()
    assert (copy.read(0, copy.pages) == elf.read(0, elf.pages)[at]).all()
    if not copied.missing:  # the host may have swapped some of it
        assert (copy.ppns(0, copy.pages) >= 1 << 20).sum() == 32768
        check(copy, stopped.report)


@pytest.mark.qemu
def test_live_vms_and_dumps_are_analyzed_together(stopped: Stopped, tmp_path: Path) -> None:
    scratch, result, pages = tmp_path / "scratch", tmp_path / "json", tmp_path / "pages"
    scratch.mkdir()
    words = ("--vm", NAME, stopped.dumps["elf"], "--scratch", scratch, "--json", result,
             "--pages", pages, "--workers", "1")  # fmt: skip
    done = CliRunner().invoke(app, ["analyze", *map(str, words)])
    assert done.exit_code == 0, done.output
    assert "What Linux guests use their pages for" in done.output
    assert done.output.startswith("1 dump and 1 live VM, ")
    assert list(scratch.iterdir()) == []
    found = json.loads(result.read_text())
    dump, live = sorted(found["vms"], key=lambda vm: vm["name"])
    assert (dump["name"], live["name"], live["kind"]) == ("elf", NAME, "live VM")
    table = pq.read_table(pages)
    named = {"elf": str(stopped.dumps["elf"]), NAME: NAME}
    for vm in (dump, live):
        assert vm["linux"].startswith("6.")
        assert sum(vm["uses"].values()) == vm["pages"]
        mine = table.filter(pc.equal(table["vm"], named[vm["name"]]))
        counted = mine["use"].combine_chunks().dictionary_decode().value_counts().to_pylist()
        assert {row["values"]: row["counts"] for row in counted} == vm["uses"]
    for use, classes in found["uses"].items():
        assert sum(classes.values()) == sum(vm["uses"].get(use, 0) for vm in found["vms"])


def test_a_snapshot_of_our_own(linux_guest: LinuxGuest, tmp_path: Path) -> None:
    """A guest on memvirt's own processor, seen by its own snapshot."""
    machine = Machine("384M")
    with VirtualMachine(machine, memory="256M", paging=PagingMode.NESTED) as vm:
        vm.load(
            linux_guest.kernel, initrd=linux_guest.initrd, append="console=ttyS0 quiet balloon=0"
        )

        def run(command: str, mark: str) -> str:
            vm.serial_log.clear()
            typed = command.encode()
            while mark.encode() not in vm.serial_log:
                typed = typed[vm.type(typed) :]
                assert vm.run_quantum() is None
            return bytes(vm.serial_log).decode("ascii", "replace")

        run("", "guest# ")
        for number, command in enumerate((*PREPARE, ASK)):
            report = run(f'{command}\necho do""ne{number}\n', f"done{number}")
        save_snapshot(vm, tmp_path / "vm")
    check(open_dump(tmp_path / "vm"), report)


@pytest.mark.parametrize(
    ("release", "buddy", "table"),
    [  # Linux, include/linux/page-flags.h of these versions
        ("4.19.0-27-amd64", -129, ~0x400), ("5.8.18", -129, ~0x400), ("5.10.0-35", -129, ~0x200),
        ("6.1.0-56-cloud-amd64", -129, ~0x200), ("6.11.4", ~0x4000_0000, ~0x1000_0000),
        ("6.12.9", 0xF000_0000, 0xF200_0000 - (1 << 32)),
    ],
)  # fmt: skip
def test_the_type_of_page_tables(release: str, buddy: int, table: int) -> None:
    assert _page_table_type(release, buddy) == table


def test_vmcoreinfo_is_read_as_documented() -> None:
    text = (
        b"OSRELEASE=6.1.0-1-amd64\nBUILD-ID=ab\nPAGESIZE=4096\nSYMBOL(mem_section)=ffff88810\n"
        b"OFFSET(page.flags)=0\nSIZE(page)=64\nNUMBER(phys_base)=-16777216\nKERNELOFFSET=2f\n\0junk"
    )
    found = parse_vmcoreinfo(text)
    assert found is not None
    assert found.release == "6.1.0-1-amd64"
    assert found.symbols == {"mem_section": 0xFFFF88810}
    assert found.numbers == {
        "OFFSET(page.flags)": 0, "SIZE(page)": 64, "NUMBER(phys_base)": -16777216,
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_text_is_read_or_refused(noise: bytes) -> None:
    parse_vmcoreinfo(b"OSRELEASE=6.1\n" + noise)
    parse_vmcoreinfo(noise)
