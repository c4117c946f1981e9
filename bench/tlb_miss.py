# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per TLB miss, called as the processor calls it: shadow and nested walks, beside a
bare four-level walk in the same callback, and beside the engine's own built-in MMU."""

from __future__ import annotations

import ctypes

import unicorn.unicorn_py3.unicorn as binding
from numba import cfunc
from unicorn import unicorn_const

from bench import microguest
from memvirt import PagingMode, VirtualMachine
from memvirt.cpu.unicorn.engine_state import engine_at, vmm_of
from memvirt.mmu.native import load32, load64, store32, store64

SWEEPS = 100
MISSES = SWEEPS * microguest.REGION_PAGES
ROUNDS = 5


@cfunc("boolean(int64, int64, int32, int64, int64)", cache=True)
def bare_walk(handle: int, page: int, kind: int, entry: int, user: int) -> bool:
    """The least a fill can do: four loads of the guest's tables, no checks, no accounting."""
    engine = engine_at(user)
    mmu = vmm_of(engine).mmu
    table = 0x200000
    for level in (4, 3, 2, 1):
        frame = load32(mmu.pmap_frame_at + (table >> 12) * 4)
        at = (frame << 12) + ((page >> (9 * level + 3)) & 511) * 8
        table = load64(mmu.memory_at + at) & 0x000F_FFFF_FFFF_F000
    frame = load32(mmu.pmap_frame_at + (table >> 12) * 4)
    store64(entry, frame << 12)
    store32(entry + 8, 7 if kind == unicorn_const.UC_MEM_FETCH else 3)
    engine.tlb_fills += 1
    return True


def use_bare_walk(vm: VirtualMachine) -> None:
    """Put ``bare_walk`` in the place of the VM's own TLB-fill callback."""
    processor = vm.processor
    token = processor._hooks[0]
    processor._check(binding.uclib.uc_hook_del(processor._handle, token), "hook_del")
    add = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64,
    )(ctypes.cast(binding.uclib.uc_hook_add, ctypes.c_void_p).value)  # fmt: skip
    error = add(
        processor._handle,
        ctypes.byref(token),
        unicorn_const.UC_HOOK_TLB_FILL,
        bare_walk.address,
        int(processor.state.state_at),
        1,
        0,
    )
    processor._check(error, "hook_add")
    processor._check(
        binding.uclib.uc_ctl(
            processor._handle, unicorn_const.UC_CTL_TLB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30
        ),
        "flush",
    )


def nanoseconds_per_miss(vm: VirtualMachine, scattered: bool) -> float:
    """The best of several rounds, less the same loop over a single page."""
    hit = microguest.stride_code(SWEEPS, 0, scattered=scattered)
    miss = microguest.stride_code(SWEEPS, 4096, scattered=scattered)
    base = min(microguest.time_code(vm, hit).seconds for _ in range(ROUNDS))
    best = min(microguest.time_code(vm, miss).seconds for _ in range(ROUNDS))
    return (best - base) / MISSES * 1e9


def main() -> None:
    print(f"TLB misses, CPU time of {MISSES:,} loads from {microguest.REGION_PAGES} pages")
    for scattered in (False, True):
        print("pages in random order" if scattered else "pages in order")
        report(scattered)


def report(scattered: bool) -> None:
    """Measure all in one order of pages, and print them side by side."""
    bare_vm = microguest.make(PagingMode.NESTED)
    use_bare_walk(bare_vm)
    results = {"bare 4-level walk in the callback": nanoseconds_per_miss(bare_vm, scattered)}
    bare_vm.power_off()
    for name, mode in (
        ("engine's own MMU (no virtualization)", PagingMode.FLAT),
        ("shadow", PagingMode.SHADOW),
        ("nested", PagingMode.NESTED),
    ):
        vm = microguest.make(mode)
        before = vm.vmm.statistics()
        results[name] = nanoseconds_per_miss(vm, scattered)
        after = vm.vmm.statistics()
        walks = after.walks - before.walks
        if walks:
            references = (after.walk_references - before.walk_references) / walks
            name_with = f"{name} ({references:.2f} references a walk)"
            results[name_with] = results.pop(name)
        vm.power_off()
    bare = results["bare 4-level walk in the callback"]
    builtin = results["engine's own MMU (no virtualization)"]
    for name, value in results.items():
        print(
            f"  {name:<46} {value:7.1f} ns   {value / bare:5.2f} x bare walk   "
            f"{value / builtin:5.2f} x engine's own MMU"
        )
