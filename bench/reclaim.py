# SPDX-License-Identifier: Apache-2.0
"""What compression and swap cost: codecs side by side on real pages, and pages through a swap file.

The pages are those of a bundled guest (a kernel, programs, sparse data), of this Python's own
shared libraries, and of Python source text.
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from memvirt import Machine, VirtualMachine
from memvirt.address import PAGE_BYTES
from memvirt.images import image_path
from memvirt.machine.memory import MachineMemory
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.compression_cache import Codec, CompressionCache
from memvirt.vmm.stores.swap_file import SwapFile, WriteBuffers

_LIMIT = 2000  # pages of each kind


def guest_pages() -> Any:
    """Resident pages of the bundled guest in the middle of a workload."""
    machine = Machine("48M")
    with VirtualMachine(machine, memory="32M") as vm:
        vm.load(image_path("bundled"), append="workload=fill percent=30 varied=30")
        vm.run_quantum(60_000_000)
        mpns = vm.vmm.pmap.frame[vm.vmm.pmap.state == PageState.PRIVATE]
        return machine.content.reshape(-1, PAGE_BYTES)[mpns[:_LIMIT]].copy()


def file_pages(files: list[Path]) -> Any:
    """The content of files, as whole pages."""
    data = b"".join(path.read_bytes() for path in files)[: _LIMIT * PAGE_BYTES]
    data = data[: len(data) // PAGE_BYTES * PAGE_BYTES]
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE_BYTES)


def kinds() -> dict[str, Any]:
    """Pages by what they are."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return {
        "guest": guest_pages(),
        "machine code": file_pages(sorted((library / "lib-dynload").glob("*.so"))),
        "text": file_pages(sorted(library.glob("*.py"))),
    }


def compress(pages: Any, codec: Codec) -> str:
    """A line on one codec and one kind of page."""
    machine = MachineMemory(len(pages) + 16)
    cache = CompressionCache(machine, 0, len(pages), codec=codec)
    started = time.perf_counter()
    slots = cache.put(np.arange(len(pages)), pages)
    packed = (time.perf_counter() - started) / len(pages) * 1e6
    kept = slots[slots >= 0].tolist()
    started = time.perf_counter()
    for slot in kept:
        cache.read(slot)
    unpacked = (time.perf_counter() - started) / max(len(kept), 1) * 1e6
    saved = len(kept) - cache.frames
    return (
        f"{len(kept) / len(pages):7.0%} kept {saved / len(pages):7.0%} saved "
        f"{packed:7.1f} us in {unpacked:7.1f} us out"
    )


def swap(pages: Any) -> tuple[float, float]:
    """(microseconds to write, to read) a page through a swap file."""
    with tempfile.TemporaryDirectory() as folder:
        machine = MachineMemory(1024)
        buffers = WriteBuffers(machine, 512)
        file = SwapFile(Path(folder) / "bench.vswp", len(pages), buffers)
        started = time.perf_counter()
        slots = file.put(np.arange(len(pages)), pages)
        buffers.write_all()
        written = (time.perf_counter() - started) / len(pages) * 1e6
        started = time.perf_counter()
        for slot in slots.tolist():
            file.take(slot)
        read = (time.perf_counter() - started) / len(pages) * 1e6
        file.close()
        buffers.close()
    return written, read


def main() -> None:
    print(f"Compression of pages (kept if they shrink to a half), Python {sys.version.split()[0]}")
    found = kinds()
    for name, pages in found.items():
        for codec in Codec:
            print(f"  {name:<13} {len(pages):5} pages  {codec:<5} {compress(pages, codec)}")
    written, read = swap(found["machine code"])
    print(f"  swap file in the page cache: {written:.1f} us a page out, {read:.1f} us a page in")
