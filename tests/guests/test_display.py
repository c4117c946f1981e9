# SPDX-License-Identifier: Apache-2.0
"""A guest that prints on the VGA only: what it shows, in every mode and wherever its page is."""

from __future__ import annotations

from pathlib import Path

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.observe.snapshot import load_snapshot, save_snapshot
from memvirt.vm.virtual_machine import VirtualMachineError
from memvirt.vmm.content import COMPRESS
from memvirt.vmm.eviction import EvictionOrder
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.compression_cache import CompressionCache
from tests.small_guest import PAGING_MODES, VIRTUALIZED, small_guest

_SCREEN_PPN = 0xB8

# Prints 30 numbered lines, scrolling by the start address as it goes below the last row; an escape
# sequence of a terminal in the last line; the cursor behind it.
SOURCE = """
test:   mov     $0xB8000, %rdi
        xor     %ebx, %ebx
line:   mov     $0x1F00, %eax           # bright white on blue
        lea     65(%rbx), %eax
        or      $0x1F00, %eax
        mov     $3, %ecx
        rep stosw
        add     $2 * 77, %rdi
        mov     $0x3D4, %edx
        out     %al, %dx                # takes time
        inc     %ebx
        cmp     $30, %ebx
        jne     line
        mov     $escape, %rsi
        sub     $2 * 77, %rdi
1:      lodsb
        test    %al, %al
        jz      2f
        mov     $0x4E, %ah
        stosw
        jmp     1b
2:      sub     $0xB8000, %rdi
        shr     $1, %rdi                # the cell behind
        mov     $0x3D4, %edx
        mov     $5 * 80 << 8 & 0xFF00 | 0x0D, %eax
        out     %ax, %dx
        mov     $(5 * 80 >> 8) << 8 | 0x0C, %eax
        out     %ax, %dx
        mov     %edi, %eax
        shl     $8, %eax
        mov     $0x0F, %al
        out     %ax, %dx
        mov     %edi, %eax
        mov     $0x0E, %al
        out     %ax, %dx
        ret
escape: .byte 27
        .asciz "[2J]0;title"
"""
_LAST = "^^^←[2J]0;title"  # the thirtieth letter after "A"


def _loaded(paging: str) -> VirtualMachine:
    machine = Machine("64M", scatter_seed=None if paging == "flat" else 3)
    vm = VirtualMachine(machine, memory="16M", paging=paging)
    vm.load(small_guest(SOURCE))
    return vm


def _ran(paging: str) -> VirtualMachine:
    vm = _loaded(paging)
    assert vm.run(timeout=120).succeeded
    return vm


def _check(vm: VirtualMachine) -> None:
    screen = vm.display
    assert screen is not None
    assert (screen.columns, screen.rows) == (80, 25)
    assert screen.lines() == [*(chr(65 + n) * 3 for n in range(5, 29)), _LAST]
    assert screen.cursor == (24, len(_LAST))
    assert set(screen.attributes(0)[:3]) == {0x1F}
    assert set(screen.attributes(24)[3 : len(_LAST)]) == {0x4E}


@pytest.mark.parametrize("paging", PAGING_MODES)
def test_what_the_guest_shows(paging: str, tmp_path: Path) -> None:
    with _ran(paging) as vm:
        _check(vm)
        save_snapshot(vm, tmp_path / "vm")
        assert load_snapshot(tmp_path / "vm").screen() == vm.display
    with pytest.raises(VirtualMachineError, match="powered off"):
        _ = vm.display


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_the_page_is_taken_away_while_the_guest_prints(paging: str) -> None:
    with _loaded(paging) as vm:
        vm.vmm.contents.set_store(COMPRESS, CompressionCache(vm.machine, vm.vm_id, 64))
        shown = {""}
        while vm.run_quantum(2000) is None:
            screen = vm.display
            assert screen is not None
            shown.add(screen.text())
            vm.vmm.unmap([_SCREEN_PPN], order=EvictionOrder((COMPRESS,)))
            assert vm.display == screen
        assert vm.vmm.statistics().brought_back > 1
        assert len(shown) > 3  # it was seen growing
        _check(vm)


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_the_page_may_be_compressed_or_shared_under_it(paging: str) -> None:
    with _ran(paging) as vm:
        vm.vmm.contents.set_store(COMPRESS, CompressionCache(vm.machine, vm.vm_id, 64))
        vm.vmm.unmap([_SCREEN_PPN], order=EvictionOrder((COMPRESS,)))
        assert vm.vmm.pmap.state_of(_SCREEN_PPN) is PageState.COMPRESSED
        _check(vm)
        vm.vmm.bring_back(_SCREEN_PPN, write=False)
        other = 0x800
        vm.vmm.write_physical(other << 12, vm.vmm.read_page(_SCREEN_PPN))
        frame = vm.vmm.make_shared(_SCREEN_PPN)
        assert vm.vmm.share([other], frame).tolist() == [other]
        assert vm.vmm.pmap.state_of(_SCREEN_PPN) is PageState.SHARED
        _check(vm)
