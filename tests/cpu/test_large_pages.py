# SPDX-License-Identifier: Apache-2.0
"""``invlpg`` of any address in a large page of the guest drops all of that page."""

from __future__ import annotations

import struct

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.platform.boot.protocol import Protocol

TABLES, FRAME = 0x200000, 0x400000
FLAGS, LARGE = 0x63, 0xE3  # present, writable, accessed, dirty; PS too
GIB = 1 << 30
BY_2_MIB, BY_1_GIB = 2 * GIB + FRAME, GIB + FRAME
STALE = b"\xb0\x11\xe6\xf4\xf4"  # mov al, 0x11; out 0xf4, al; hlt


def page_tables() -> bytes:
    """The first 4 MiB by pages of 4 KiB; the second GiB is one page of the first's memory; the
    third has one page of 2 MiB, for FRAME."""
    root = [(TABLES + 0x1000) | FLAGS]
    pointers = [(TABLES + 0x2000) | FLAGS, LARGE, (TABLES + 0x3000) | FLAGS]
    directory = [(TABLES + 0x4000) | FLAGS, (TABLES + 0x5000) | FLAGS]
    last = [0] * (FRAME >> 21) + [FRAME | LARGE]
    leaves = [(ppn << 12) | FLAGS for ppn in range(1024)]
    tables = root, pointers, directory, last, leaves
    return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(4096, b"\0") for table in tables)


def load(gva: int) -> bytes:
    return b"\xbb" + struct.pack("<I", gva) + b"\x8a\x03"  # mov ebx, gva; mov al, [rbx]


@pytest.mark.parametrize("paging", list(PagingMode))
def test_a_frame_behind_pages_of_two_sizes(paging: PagingMode) -> None:
    """What is kept of the 2 MiB page must not stand for the 1 GiB page too."""
    entry = TABLES + 0x1008
    code = load(BY_1_GIB) + load(BY_2_MIB)
    code += b"\x0f\x20\xda\x0f\x22\xda" + load(BY_1_GIB)  # reload CR3: nothing is cached
    code += b"\xbf" + struct.pack("<I", entry) + b"\x48\xc7\x07" + bytes(4)  # mov q [entry], 0
    code += b"\xbb" + struct.pack("<I", GIB + 0x1000_0000) + b"\x0f\x01\x3b"  # invlpg there
    code += load(BY_1_GIB) + STALE
    seed = None if paging is PagingMode.FLAT else 1
    machine = Machine("128M", scatter_seed=seed)
    with VirtualMachine(machine, memory="64M", paging=paging) as vm:
        vm.load(code, protocol=Protocol.FLAT)
        vm.vmm.write_physical(TABLES, page_tables())
        vm.processor.set("cr3", TABLES)
        outcome = vm.run(timeout=120)
        assert outcome.reason is EndReason.TRIPLE_FAULT, outcome  # there is no IDT for the #PF
        assert vm.processor.get("cr2") == BY_1_GIB
