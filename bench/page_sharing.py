# SPDX-License-Identifier: Apache-2.0
"""The page-sharing scan beside the Linux kernel's KSM, on the same content in the same run.

KSM runs flat out (no sleep between batches) over an anonymous mapping of the same pages; its
settings are restored afterwards. Both are measured by CPU time: KSM by that of its kernel thread,
as the kernel accounts it, in steps of a clock tick. It needs root, a kernel with KSM and no
mergeable memory in other processes (of those whose memory we may look at); without, only our own
figures are printed. KSM merges a page only in its second scan, when its checksum has not changed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.host.vmm_memory import VmmMemory
from memvirt.machine.memory import MachineMemory
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor

PAGES = 32_768
_KSM = Path("/sys/kernel/mm/ksm")
_SETTINGS = ("run", "sleep_millisecs", "pages_to_scan", "smart_scan", "advisor_mode")
_TIMEOUT = 20
_REPEATS = 3


def content(duplicates: float) -> Any:
    """PAGES pages, a part of which are copies of one of 64 pages."""
    random = np.random.default_rng(1)
    pages = random.integers(0, 256, (PAGES, PAGE_BYTES), dtype=np.uint8)
    copies = random.permutation(PAGES)[: int(PAGES * duplicates)]
    pages[copies] = pages[random.integers(0, 64, copies.size)]
    return pages


def own_scan(pages: Any) -> tuple[float, int]:
    """(pages a CPU second, frames saved) of one pass of the VMkernel's scan over a VM."""
    machine = MachineMemory(PAGES + 2048)
    vmm = VirtualMachineMonitor(machine, PAGES, PagingMode.NESTED)
    for ppn in range(PAGES):
        vmm.bring_back(ppn, write=True)
    machine.content.reshape(-1, PAGE_BYTES)[vmm.pmap.frame] = pages
    guest = VmmMemory(vmm)
    sharing = PageSharing(np.random.default_rng(1))
    sharing.add(guest)
    free = machine.free_frames
    started = time.process_time()
    sharing.scan(guest, PAGES)
    seconds = time.process_time() - started
    return PAGES / seconds, machine.free_frames - free


def _read(name: str) -> int:
    return int((_KSM / name).read_text())


@contextlib.contextmanager
def ksm_flat_out() -> Iterator[None]:
    """KSM without pauses; everything as it was afterwards. Raises OSError if that cannot be."""
    before = {name: (_KSM / name).read_text() for name in _SETTINGS if (_KSM / name).exists()}
    try:
        if "advisor_mode" in before:
            (_KSM / "advisor_mode").write_text("none")
        if "smart_scan" in before:
            (_KSM / "smart_scan").write_text("0")
        (_KSM / "sleep_millisecs").write_text("0")
        (_KSM / "pages_to_scan").write_text("4096")
        yield
    finally:
        (_KSM / "run").write_text("2")  # unmerge what is left
        for name, text in before.items():
            value = text.split("[")[-1].split("]")[0] if "[" in text else text
            (_KSM / name).write_text(value)


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


def ksm_scan(pages: Any) -> tuple[float, int]:
    """(pages a CPU second, pages saved) of KSM over a mapping with the same pages."""
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
            while _read("full_scans") < scans + 3 and time.perf_counter() < started + _TIMEOUT:
                time.sleep(0.005)
            spent = _ksmd_seconds() - spent
            if spent <= 0:
                raise OSError("the kernel accounted no CPU time to ksmd")
            rate = (_read("pages_scanned") - scanned) / spent
            saved = _read("pages_sharing")
        del view
    return rate, saved


def main() -> None:
    print(f"Page-sharing scan of {PAGES:,} pages of noise, part of them copies of 64: CPU time")
    print(f"  {'copies':>7} {'memvirt pages/s':>16} {'saved':>8} {'KSM pages/s':>13} {'saved':>8}")
    own_scan(content(0.0))  # compile
    for duplicates in (0.0, 0.5, 0.95):
        pages = content(duplicates)
        rate, saved = max(own_scan(pages) for _ in range(_REPEATS))
        try:
            ksm_rate, ksm_saved = ksm_scan(pages)
        except (OSError, AttributeError) as error:
            print(f"  {duplicates:7.0%} {rate:16,.0f} {saved:8,}   no KSM here: {error}")
            continue
        print(
            f"  {duplicates:7.0%} {rate:16,.0f} {saved:8,} {ksm_rate:13,.0f} {ksm_saved:8,}"
            f"   {rate / ksm_rate:5.1f} x"
        )
