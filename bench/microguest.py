# SPDX-License-Identifier: Apache-2.0
"""A guest of a few instructions with its own four-level tables of 4 KiB pages, for measuring."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from memvirt import Machine, PagingMode, VirtualMachine
from memvirt.platform.boot.detect import Protocol

MEMORY = 64 << 20
TABLES = 0x200000
CODE = 0x100000
REGION = 0x1000000  # 32 MiB of 4 KiB pages from here on
REGION_PAGES = 8192


@dataclass(frozen=True, slots=True)
class Timing:
    """Host seconds of a run, and TLB fills during it (0 where the engine has its own MMU)."""

    seconds: float
    fills: int


def page_tables() -> bytes:
    """PML4, PDPT, one directory and 32 tables: 64 MiB identity-mapped with 4 KiB pages."""
    flags = 0x63  # present, writable, accessed, dirty
    pml4 = struct.pack("<Q", (TABLES + 0x1000) | flags).ljust(4096, b"\0")
    pdpt = struct.pack("<Q", (TABLES + 0x2000) | flags).ljust(4096, b"\0")
    tables = MEMORY >> 21
    directory = b"".join(
        struct.pack("<Q", (TABLES + 0x3000 + i * 0x1000) | flags) for i in range(tables)
    ).ljust(4096, b"\0")
    leaves = b"".join(struct.pack("<Q", (i << 12) | flags) for i in range(MEMORY >> 12))
    return pml4 + pdpt + directory + leaves


_INCREMENT = 12345  # of the generator x = 5 x + 12345 modulo REGION_PAGES, which meets all pages


def stride_code(sweeps: int, stride: int, *, scattered: bool = False) -> bytes:
    """``sweeps`` times: reload CR3, then load a byte from REGION_PAGES addresses ``stride``
    apart. The reload empties the TLB, which would otherwise grow until nothing misses.
    ``scattered``: the same addresses in the order of a linear congruential generator."""
    step = b"\x48\x81\xc7" + struct.pack("<i", stride)  # add rdi, stride
    if scattered:
        step = (
            b"\x8d\xbc\xbf" + struct.pack("<i", _INCREMENT * stride)  # lea edi, [rdi + rdi*4 + ...]
            + b"\x81\xe7" + struct.pack("<i", (REGION_PAGES - 1) * stride)  # and edi, ...
        )  # fmt: skip
    loop = b"\x8a\x04\x3b" + step + b"\x48\xff\xc9"  # mov al, [rbx + rdi]; step; dec rcx
    inner = loop + b"\x75" + bytes([256 - len(loop) - 2])
    outer = (
        b"\x0f\x22\xda"  # mov cr3, rdx
        + b"\xb9" + struct.pack("<I", REGION_PAGES)  # mov ecx, REGION_PAGES
        + b"\x31\xff" + inner  # xor edi, edi
        + b"\x48\xff\xce"  # dec rsi
    )  # fmt: skip
    return (
        b"\xbe" + struct.pack("<I", sweeps)  # mov esi, sweeps
        + b"\xbb" + struct.pack("<I", REGION)  # mov ebx, REGION
        + b"\x0f\x20\xda"  # mov rdx, cr3
        + outer + b"\x75" + bytes([256 - len(outer) - 2])
        + b"\xb0\x10\xe6\xf4\xf4"  # mov al, 0x10; out 0xf4, al; hlt
    )  # fmt: skip


def make(paging: PagingMode) -> VirtualMachine:
    """A VM with the tables in place and every page of the region touched."""
    vm = VirtualMachine(Machine("192M", scatter_seed=1), memory=MEMORY, paging=paging)
    vm.load(stride_code(2, 4096), protocol=Protocol.FLAT)
    vm.vmm.write_physical(TABLES, page_tables())
    vm.processor.set("cr3", TABLES)
    vm.run()
    return vm


def time_code(vm: VirtualMachine, code: bytes) -> Timing:
    """Run ``code`` from the start on ``vm`` and time it."""
    vm.vmm.write_physical(CODE, code)
    vm.processor.drop_all_code()
    vm.outcome = None
    vm.pc[0].control.exit_requested = 0
    vm.processor.set("rip", CODE)
    fills = vm.processor.statistics().tlb_fills
    started = time.thread_time()
    outcome = vm.run()
    seconds = time.thread_time() - started
    assert outcome.succeeded, outcome
    return Timing(seconds, vm.processor.statistics().tlb_fills - fills)
