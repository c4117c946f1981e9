# SPDX-License-Identifier: Apache-2.0
"""The page-sharing scan beside the Linux kernel's KSM, on the same content in the same run.

KSM runs flat out (no sleep between batches) over an anonymous mapping of the same pages; its
settings are restored afterwards, also after Ctrl-C. Both are measured by CPU time: KSM by that of
its kernel thread, as the kernel accounts it, in steps of a clock tick. It needs root, a kernel with
KSM and no mergeable memory in other processes (of those whose memory we may look at); without, only
our own figures are printed. KSM merges a page only in its second scan, when its checksum has not
changed, and passes merged pages quickly from then on; so what is compared is the CPU time of the
whole work: one pass of ours, two scans of KSM's.

``of reading`` compares our scan with a pass that does nothing but read the same memory, once.

Later passes hash only what was written to since, as the VMM knows: the first is repeated with
nothing written, and with each twentieth page written to. KSM's later scans checksum every page.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES, PhysicalPageNumber, guest_physical_address
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.memory import MachineMemory
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor

PAGES = 32_768
_KSM = Path("/sys/kernel/mm/ksm")
_SETTINGS = ("run", "sleep_millisecs", "pages_to_scan", "smart_scan", "advisor_mode")
_TIMEOUT = 20
_REPEATS = 5


def content(duplicates: float) -> Any:
    """PAGES pages, a part of which are copies of one of 64 pages."""
    random = np.random.default_rng(1)
    pages = random.integers(0, 256, (PAGES, PAGE_BYTES), dtype=np.uint8)
    copies = random.permutation(PAGES)[: int(PAGES * duplicates)]
    pages[copies] = pages[random.integers(0, 64, copies.size)]
    return pages


@dataclass(frozen=True, slots=True)
class OwnScan:
    """Pages a CPU second of passes over one VM, and frames saved by the first."""

    first: float
    unwritten: float
    part_written: float  # one page in twenty
    read: float  # of a pass that only reads them
    saved: int


def _passes(sharing: PageSharing, guest: VmmMemory) -> float:
    """Pages a CPU second of one pass."""
    started = time.process_time()
    sharing.scan(guest, PAGES)
    return PAGES / (time.process_time() - started)


def _reading(content: Any) -> float:
    """Pages a CPU second of a pass that reads ``content`` (uint8, whole pages) and does no more."""
    words = content.view(np.uint64)
    seconds = []
    for _ in range(_REPEATS):
        started = time.process_time()
        np.bitwise_xor.reduce(words)
        seconds.append(time.process_time() - started)
    return content.size / PAGE_BYTES / min(seconds)


def own_scan(pages: Any) -> OwnScan:
    """Three passes of the VMkernel's scan over a VM with this content."""
    machine = MachineMemory(PAGES + 2048)
    vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.NESTED)
    for ppn in range(PAGES):
        vmm.bring_back(ppn, write=True)
    machine.content.reshape(-1, PAGE_BYTES)[vmm.pmap.frame] = pages
    guest = VmmMemory(vmm)
    sharing = PageSharing(np.random.default_rng(1))
    sharing.add(guest)
    read = _reading(machine.content[: PAGES * PAGE_BYTES])
    free = machine.free_frames
    first = _passes(sharing, guest)
    saved = machine.free_frames - free
    unwritten = _passes(sharing, guest)
    for ppn in range(0, PAGES, 20):
        vmm.write_physical(guest_physical_address(PhysicalPageNumber(ppn)), b"written")
    part_written = _passes(sharing, guest)
    vmm.power_off()
    return OwnScan(first, unwritten, part_written, read, saved)


def _read(name: str) -> int:
    return int((_KSM / name).read_text())


def _end(number: int, _: object) -> None:
    """On the first signal, end; whatever comes after it does not disturb what is put back."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextlib.contextmanager
def ksm_flat_out() -> Iterator[None]:
    """KSM without pauses; everything as it was afterwards. Raises OSError if that cannot be."""
    before = {name: (_KSM / name).read_text() for name in _SETTINGS if (_KSM / name).exists()}
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if "advisor_mode" in before:
            (_KSM / "advisor_mode").write_text("none")
        if "smart_scan" in before:
            (_KSM / "smart_scan").write_text("0")
        (_KSM / "sleep_millisecs").write_text("0")
        (_KSM / "pages_to_scan").write_text("4096")
        yield
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        with contextlib.ExitStack() as stack:  # each is put back, whatever becomes of the others
            for number, handler in handlers.items():
                stack.callback(signal.signal, number, handler)
            for name, text in before.items():
                value = text.split("[")[-1].split("]")[0] if "[" in text else text
                stack.callback((_KSM / name).write_text, value)
            (_KSM / "run").write_text("2")  # unmerge what is left


def _ksmd_seconds() -> float:
    """CPU seconds of KSM's thread so far. Raises OSError if there is none."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "ksmd\n":
                fields = (comm.parent / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise OSError("no thread ksmd is seen")


def _refuse_others() -> None:
    """Raise OSError if another process has mergeable memory: KSM would scan, and merge, it too."""
    for smaps in Path("/proc").glob("[0-9]*/smaps"):
        if smaps.parent.name == str(os.getpid()):
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            flags = [line for line in smaps.read_text().splitlines() if line[:8] == "VmFlags:"]
            if any("mg" in line.split() for line in flags):
                raise OSError(f"process {smaps.parent.name} has mergeable memory too")


def ksm_scan(pages: Any) -> tuple[float, float, int]:
    """KSM over a mapping with the same pages: CPU seconds of two scans, pages a CPU second in
    them, pages saved."""
    _refuse_others()
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # KSM leaves shared mappings alone
    with mmap.mmap(-1, PAGES * PAGE_BYTES, flags=private) as mapping:
        mapping.madvise(mmap.MADV_MERGEABLE)
        view = np.frombuffer(mapping, np.uint8).reshape(-1, PAGE_BYTES)
        view[:] = pages
        with ksm_flat_out():
            scans, scanned = _read("full_scans"), _read("pages_scanned")
            started, spent = time.perf_counter(), _ksmd_seconds()
            (_KSM / "run").write_text("1")
            while _read("full_scans") < scans + 2:
                if time.perf_counter() > started + _TIMEOUT:
                    raise OSError(f"KSM did not scan the pages twice within {_TIMEOUT} s")
                time.sleep(0.005)
            spent = _ksmd_seconds() - spent
            if spent <= 0:
                raise OSError("the kernel accounted no CPU time to ksmd")
            rate = (_read("pages_scanned") - scanned) / spent
            saved = _read("pages_sharing")
        del view
    return spent, rate, saved


def main() -> None:
    print(f"Page-sharing scan of {PAGES:,} pages of noise, part of them copies of 64: CPU time")
    print(
        f"  {'copies':>7} {'memvirt pages/s':>16} {'of reading':>10} {'saved':>8} {'ms':>6}"
        f" {'KSM pages/s':>13} {'saved':>8} {'ms':>6}"
    )
    later = []
    own_scan(content(0.5))  # compile
    for duplicates in (0.0, 0.5, 0.95):
        pages = content(duplicates)
        scans = [own_scan(pages) for _ in range(_REPEATS)]
        own = max(scans, key=lambda scan: scan.first)
        rate, saved = own.first, own.saved
        later.append((duplicates, own))
        ms = 1e3 * PAGES / rate
        of_reading = rate / max(scan.read for scan in scans)
        line = f"  {duplicates:7.0%} {rate:16,.0f} {of_reading:10.0%} {saved:8,} {ms:6.1f}"
        try:
            spent, ksm_rate, ksm_saved = ksm_scan(pages)
        except (OSError, AttributeError) as error:
            print(f"{line}   no KSM here: {error}")
            continue
        ksm = f"{ksm_rate:13,.0f} {ksm_saved:8,} {1e3 * spent:6.0f}"
        print(f"{line} {ksm}   {1e3 * spent / ms:5.1f} x")
    print("Later passes of memvirt's, pages/s, by what was written to since the one before")
    print(f"  {'copies':>7} {'nothing':>16} {'5 % of pages':>16}")
    for duplicates, own in later:
        print(f"  {duplicates:7.0%} {own.unwritten:16,.0f} {own.part_written:16,.0f}")
