# SPDX-License-Identifier: Apache-2.0
"""The checked build finds wild loads and stores, each in a process of its own, which it ends.

``make checked`` runs the small suites in that build.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from memvirt import compiled_cache
from memvirt.compiled_cache import CHECKED
from memvirt.mmu.checked import kernel_name
from memvirt.mmu.host_ranges import HostRange, RangeTable, host_address

SETUP = """
import ctypes
import numpy as np
from numba import njit
from memvirt.mmu.host_ranges import ForeignRanges, host_address
from memvirt.mmu.native import copy_bytes, load32, load64, store8, store64

@njit
def poke(address, value):
    store64(address, value)

@njit
def poke_byte(address, value):
    store8(address, value)

@njit
def peek(address):
    return load64(address)

@njit
def copy(destination, source, count):
    copy_bytes(destination, source, count)

array = np.zeros(100, np.int64)
other = np.zeros(100, np.int64)
start = host_address(array, "the array")
host_address(other, "the other array")
"""


def run_checked(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the checked build, after SETUP."""
    # As `make checked` runs, so that both use one cache of compiled kernels.
    environment = {**os.environ, "MEMVIRT_CHECKED": "1", "NUMBA_BOUNDSCHECK": "1"}
    return subprocess.run(
        [sys.executable, "-c", SETUP + program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_accesses_inside_their_ranges_are_made() -> None:
    done = run_checked(
        "poke(start, 5); poke(start + 99 * 8, 7); poke_byte(start + 799, 1)\n"
        "copy(start + 8, start, 8)\n"
        "print(array[0], array[1], array[99] & 0xFF, peek(start))\n"
        "memory = ctypes.create_string_buffer(64)\n"
        "foreign = ForeignRanges()\n"
        "at = foreign.add(ctypes.addressof(memory), 64, 'the buffer')\n"
        "poke(at + 56, -1); print(memory.raw[56:] == bytes([255] * 8))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "5", "7", "5", "True"]


WILD = {
    "store past the end": (
        "poke(start + 800, 1)",
        "store of 8 bytes",
        "poke",
        "8 bytes past the end of the array",
    ),
    "store across the end": (
        "poke(start + 793, 1)",
        "store of 8 bytes",
        "poke",
        "1 bytes past the end of the array",
    ),
    "byte before the start": (
        "poke_byte(start - 1, 1)",
        "store of 1 bytes",
        "poke_byte",
        "1 bytes before the array",
    ),
    "load from nowhere": ("peek(16)", "load of 8 bytes at 0x10 ", "peek", "bytes before"),
    "negative address": (
        "peek(-8)",
        "load of 8 bytes at 0xfffffffffffffff8 ",
        "peek",
        "past the end of",
    ),
    "copy from too much": (
        "copy(start, host_address(other, 'x') + 400, 500)",
        "load of 500 bytes",
        "copy",
        "100 bytes past the end of the other array",
    ),
    "copy to too little": (
        "copy(start + 400, host_address(other, 'x'), 500)",
        "store of 500 bytes",
        "copy",
        "100 bytes past the end of the array",
    ),
    "store after the array is gone": ("del array; poke(start, 1)", "store of 8", "poke", ""),
    "store after the memory is closed": (
        "f = ForeignRanges(); f.add(4096, 64, 'memory'); f.close(); poke(4096, 1)",
        "store of 8 bytes at 0x1000 ",
        "poke",
        "bytes before",
    ),
}


@pytest.mark.parametrize("name", WILD)
def test_a_wild_access_ends_the_run_loudly(name: str) -> None:
    program, what, kernel, where = WILD[name]
    done = run_checked(f"{program}\nprint('survived')")
    assert done.returncode == -signal.SIGABRT, (done.returncode, done.stderr)
    assert "survived" not in done.stdout
    assert f"memvirt: wild {what}" in done.stderr
    assert f"by kernel __main__.{kernel}" in done.stderr
    assert where in done.stderr
    assert 'File "<string>"' in done.stderr  # the Python stack that entered the kernel


KERNELS = {
    "pmap gone": (
        "vmm.state.mmu.pmap_state_at = 0x5000",
        "wild load of 1 bytes at 0x5000",
        "memvirt.mmu.second_level.pmap_walk",
    ),
    "CR3 through a damaged pmap": (
        "vmm.pmap.frame[0] = 0x7FFFFFFF",
        "wild load of 8 bytes",
        "memvirt.mmu.guest_walk._read_entries",
    ),
    "shadow root beyond the machine": (
        "access(vmm.state, 0, 0); note_flush(vmm.state); access(vmm.state, 0, 0)\n"
        "vmm.state.mmu.shadow_root += 1 << 30",
        "wild load of 8 bytes",
        "memvirt.mmu.shadow_walk.shadow_walk",
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_the_mmu_are_checked(name: str) -> None:
    """Damage that no array bound sees: a page number, a root, an address in the control block."""
    damage, what, kernel = KERNELS[name]
    done = run_checked(
        "from memvirt.machine.memory import MachineMemory\n"
        "from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor\n"
        "from memvirt.vmm.translate import access, note_flush\n"
        "vmm = VirtualMachineMonitor(MachineMemory(512), 16, PagingMode.SHADOW)\n"
        "vmm.write_physical(0, (0x1007).to_bytes(8, 'little'))\n"
        "vmm.state.mmu.cr0, vmm.state.mmu.cr4, vmm.state.mmu.efer = 0x80010001, 0x20, 0xD00\n"
        f"{damage}\n"
        "access(vmm.state, 0, 0); access(vmm.state, 0, 0)\n"
        "print('survived')"
    )
    assert done.returncode == -signal.SIGABRT, (done.returncode, done.stdout, done.stderr)
    assert what in done.stderr
    assert kernel in done.stderr


def test_each_build_has_its_own_cache() -> None:
    """Numba would load unchecked code into a checked process."""
    # The module alone: importing memvirt would compile it, once for each build.
    program = f"import runpy; print(runpy.run_path({compiled_cache.__file__!r})['source_digest']())"
    digests = set()
    for checked, bounds in (("", "0"), ("1", "0"), ("", "1"), ("1", "1")):
        environment = {**os.environ, "MEMVIRT_CHECKED": checked, "NUMBA_BOUNDSCHECK": bounds}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 4
    assert compiled_cache.CHECKED is CHECKED


# The table of ranges ---------------------------------------------------------------------------


def test_ranges_that_touch_stay_two_and_ranges_that_overlap_are_one() -> None:
    table = RangeTable()
    first = table.add(HostRange(1000, 100, "first"))
    table.add(HostRange(1100, 100, "second"))
    assert table.contains(1000, 100)
    assert table.contains(1100, 1)
    assert not table.contains(1096, 8)
    overlap = table.add(HostRange(1050, 100, "over both"))
    assert table.contains(1096, 8)
    table.remove(overlap)
    assert not table.contains(1096, 8)
    table.remove(first)
    table.remove(first)
    assert not table.contains(1000, 1)
    assert [each.name for each in table.ranges()] == ["second"]


def test_random_ranges_against_a_set_of_bytes() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        table, owners = RangeTable(), np.zeros(400, np.int64)
        kept = []
        for _ in range(12):
            start, size = int(rng.integers(0, 360)), int(rng.integers(1, 40))
            kept.append((table.add(HostRange(start, size, "r")), start, size))
        for number, start, size in kept[::3]:
            table.remove(number)
            kept.remove((number, start, size))
        # Bytes that ranges join belong together: follow each overlap.
        for number, start, size in sorted(kept, key=lambda each: each[1]):
            inside = owners[start : start + size]
            owners[start : start + size] = inside[inside > 0].max() if inside.any() else number
        for at in range(390):
            for size in (1, 4, 8):
                piece = owners[at : at + size]
                expected = bool(piece.all()) and len(set(piece.tolist())) == 1
                assert table.contains(at, size) == expected


def test_a_range_ends_with_its_array() -> None:
    from memvirt.mmu.host_ranges import TABLE  # noqa: PLC0415

    def own() -> list[int]:  # others' ranges may end at any moment, with what was left of a test
        return [entry.start for entry in TABLE.ranges() if entry.name == "short-lived"]

    array = np.zeros(100, np.int64)
    address = host_address(array, "short-lived")
    assert address == array.ctypes.data
    assert own() == [address] * CHECKED
    del array
    gc.collect()
    assert own() == []


def test_names_of_kernels_are_readable() -> None:
    symbol = "_ZN7memvirt3mmu10guest_walk13_read_entriesB2v1B38c8tJTIcFKzyF2ILShI4CrgQElQb6HczSBbKE"
    assert kernel_name(symbol) == "memvirt.mmu.guest_walk._read_entries"
    assert kernel_name("plain") == "plain"
