# SPDX-License-Identifier: Apache-2.0
"""Code that patches its own page through another, non-executable mapping, as Linux does."""

from __future__ import annotations

import struct

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.platform.boot.protocol import Protocol
from memvirt.vmm.check import check_machine

MEMORY = 64 << 20
TABLES, CODE, ALIAS = 0x200000, 0x100000, 0x3000000
FLAGS = 0x63  # present, writable, accessed, dirty
NO_EXECUTE = 1 << 63
EFER_WITH_NX = 0xD00
ROUNDS = 300

SUCCESS = b"\xb0\x10\xe6\xf4\xf4"  # mov al, 0x10; out 0xf4, al; hlt
FAILURE = b"\xb0\x11\xe6\xf4\xf4"


def page_tables() -> bytes:
    """The first 64 MiB identity-mapped with 4 KiB pages, but ALIAS maps CODE's page, with NX."""
    pml4 = struct.pack("<Q", (TABLES + 0x1000) | FLAGS).ljust(4096, b"\0")
    pdpt = struct.pack("<Q", (TABLES + 0x2000) | FLAGS).ljust(4096, b"\0")
    directory = b"".join(
        struct.pack("<Q", (TABLES + 0x3000 + i * 0x1000) | FLAGS) for i in range(MEMORY >> 21)
    ).ljust(4096, b"\0")
    leaves = [(ppn << 12) | FLAGS for ppn in range(MEMORY >> 12)]
    leaves[ALIAS >> 12] = CODE | FLAGS | NO_EXECUTE
    return pml4 + pdpt + directory + struct.pack(f"<{len(leaves)}Q", *leaves)


def patching_code(between: bytes, end: bytes) -> bytes:
    """ROUNDS times: patch the immediate of ``mov al, imm8``, then ``between``, and execute it."""
    head = b"\xbb" + struct.pack("<I", ALIAS)  # mov ebx, ALIAS
    head += b"\xb9" + struct.pack("<I", ROUNDS)  # mov ecx, ROUNDS
    loop = len(head)
    slot = loop + 6 + len(between)
    body = b"\x88\x8b" + struct.pack("<I", slot + 1)  # mov [rbx + slot + 1], cl
    body += between
    body += b"\xb0\xcc"  # slot: mov al, 0xcc
    body += b"\x38\xc8"  # cmp al, cl
    body += b"\x75" + bytes([4 + len(end)])  # jne failure
    body += b"\xff\xc9"  # dec ecx
    return head + body + b"\x75" + bytes([256 - len(body) - 2]) + end + FAILURE


def run(paging: PagingMode, code: bytes) -> VirtualMachine:
    machine = Machine("128M", scatter_seed=1)
    vm = VirtualMachine(machine, memory=MEMORY, paging=paging)
    vm.load(code, protocol=Protocol.FLAT)
    vm.vmm.write_physical(TABLES, page_tables())
    vm.processor.set("cr3", TABLES)
    vm.processor.set("efer", EFER_WITH_NX)
    vm.run(timeout=120)
    assert check_machine(machine, [vm.vmm]) == []
    return vm


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
@pytest.mark.parametrize(
    "between",
    [
        b"",  # the very next instruction
        b"\xeb\x00",  # a new block
        b"\x0f\x01\x3b",  # invlpg [rbx]
        b"\x0f\x20\xda\x0f\x22\xda",  # a reload of CR3
    ],
)
def test_code_patches_its_own_page(paging: PagingMode, between: bytes) -> None:
    """Each patch is seen by the next instruction, and the program gets on."""
    with run(paging, patching_code(between, SUCCESS)) as vm:
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, vm.outcome
        assert vm.processor.statistics().precise_writes > 0


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
def test_the_other_mapping_stays_non_executable(paging: PagingMode) -> None:
    """Right after a write through it, a jump into it is a page fault (here: a triple fault)."""
    jump = b"\x88\x8b" + struct.pack("<I", 0xF00)  # mov [rbx + 0xf00], cl
    jump += b"\xff\xe3"  # jmp rbx
    with run(paging, patching_code(b"", jump)) as vm:
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.TRIPLE_FAULT, vm.outcome
        assert vm.processor.get("cr2") == ALIAS
        assert vm.processor.get("rip") == ALIAS
