# SPDX-License-Identifier: Apache-2.0
"""What a hidden fault costs: first touches of pages (demand allocation, the hidden fault), in each
paging mode, beside the same loop on the engine's own MMU with all memory in place."""

from __future__ import annotations

from bench import microguest
from memvirt import PagingMode


def main() -> None:
    pages = microguest.REGION_PAGES
    print(f"First touch of {pages:,} pages after the host unmapped them (pages of zeroes)")
    code = microguest.stride_code(1, 4096)
    flat = microguest.make(PagingMode.FLAT)
    base = min(microguest.time_code(flat, code).seconds for _ in range(5)) / pages * 1e9
    print(f"  {'engine, own MMU, memory in place':<40} {base:8.1f} ns a page")
    first = microguest.REGION >> 12
    for mode in (PagingMode.SHADOW, PagingMode.NESTED):
        vm = microguest.make(mode)
        best = float("inf")
        for _ in range(5):
            vm.vmm.unmap(range(first, first + pages))
            best = min(best, microguest.time_code(vm, code).seconds / pages * 1e9)
        print(f"  {mode.name.lower():<40} {best:8.1f} ns a page   {best / base:5.1f} x")
        vm.power_off()
