# SPDX-License-Identifier: Apache-2.0
"""When pages were touched last: against a guest that touches known pages."""

from __future__ import annotations

import pytest

from memvirt import Machine, VirtualMachine
from memvirt.observe.page_classes import host_pages
from memvirt.vmm.check import check_machine
from memvirt.web.page_activity import PageActivity, UseClass
from tests.small_guest import VIRTUALIZED, small_guest
from tests.waiting import until

from .conftest import Opened, Served
from .test_page import vm_of

_FIRST, _HOT, _COLD = (
    0x800,
    8,
    8,
)  # PPNs at 8 MiB: some that are touched again and again, and others
SOURCE = f"""
test:   mov     $0x800000, %rdi
        mov     $({_HOT} + {_COLD}) * 512, %ecx
        mov     $1, %eax
        rep stosq                       # all of them, once
again:  mov     $0x800000, %rdi
        mov     ${_HOT}, %ecx
1:      incq    (%rdi)
        add     $4096, %rdi
        loop    1b
        jmp     again
"""


@pytest.mark.parametrize("paging", VIRTUALIZED)
def test_pages_by_when_they_were_touched(paging: str) -> None:
    machine = Machine("64M", scatter_seed=3)
    with VirtualMachine(machine, memory="16M", paging=paging) as vm:
        vm.load(small_guest(SOURCE))
        hot = slice(_FIRST, _FIRST + _HOT)
        cold = slice(hot.stop, hot.stop + _COLD)
        activity = PageActivity()

        def look(rounds: int) -> tuple[set[int], set[int]]:
            parts = activity.look([vm], host_pages(machine, [vm]), rounds)
            use, frames = parts[f"use:{vm.vm_id}"], vm.vmm.pmap.frame
            by_frame = parts["use:machine"]
            for pages in (hot, cold):
                assert (by_frame[frames[pages]] == use[pages]).all()
            return set(use[hot].tolist()), set(use[cold].tolist())

        for _ in range(5):
            vm.run_quantum(1_000_000)
        assert look(1) == ({UseClass.NOT_TOUCHED}, {UseClass.NOT_TOUCHED})
        for rounds in (2, 3):
            vm.run_quantum(1_000_000)
            assert look(rounds) == ({UseClass.NOW}, {UseClass.NOT_TOUCHED})
        # Nothing runs any more: what was touched last in round 3 is longer and longer ago.
        for rounds, wanted in ((3, UseClass.NOW), (8, UseClass.RECENT), (11, UseClass.RECENT),
                               (12, UseClass.EARLIER), (67, UseClass.EARLIER),
                               (68, UseClass.LONG_AGO)):  # fmt: skip
            assert look(rounds) == ({wanted}, {UseClass.NOT_TOUCHED}), rounds
        vm.vmm.unmap([cold.start])
        assert look(69)[1] == {UseClass.NOT_TOUCHED, UseClass.NOT_RESIDENT}
        assert check_machine(machine, [vm.vmm]) == []


def test_the_vmkernels_samples_are_not_disturbed() -> None:
    """A page that is sampled and not touched stays so while somebody looks."""
    machine = Machine("64M", scatter_seed=3)
    with VirtualMachine(machine, memory="16M", paging="nested") as vm:
        vm.load(small_guest(SOURCE))
        for _ in range(5):
            vm.run_quantum(1_000_000)
        pages = list(range(_FIRST, _FIRST + _HOT + _COLD))
        vm.vmm.begin_sample(pages)
        activity = PageActivity()
        for rounds in range(3):
            activity.look([vm], host_pages(machine, [vm]), rounds)
            vm.run_quantum(1_000_000)
        assert vm.vmm.untouched(pages).tolist() == [False] * _HOT + [True] * _COLD


def test_observed_only_while_a_page_shows_it(opened: Opened, served: Served) -> None:
    vm = vm_of(served, "nested")
    until(lambda: served.ask(lambda: served.source._activity) is None, "nobody to look before")
    opened.js(
        """() => { const box = document.getElementById('mode');
                   box.value = 'activity'; box.dispatchEvent(new Event('change')); }"""
    )
    part = f"memvirt.store.parts.get('use:{vm.vm_id}')"
    opened.until(f"{part} !== undefined")
    served.ask(lambda: served.source.control("step", 3))
    opened.until(f"{part}.some(use => use >= {UseClass.RECENT.value})")
    opened.settled(served)
    page, wanted = opened.js(
        """async id => {
          const { useColours } = await import('./static/colors.js');
          const uses = memvirt.store.parts.get(`use:${id}`), last = Math.max(...uses);
          return [uses.indexOf(last), useColours()[last]];
        }""",
        vm.vm_id,
    )
    assert opened.drawn(vm.vm_id, page) == wanted
    opened.page.keyboard.press("c")
    until(lambda: not served.source._observed, "nobody to look at activity")
    served.ask(lambda: served.source.control("step", 1))
    until(lambda: served.ask(lambda: served.source._activity) is None, "the end of observation")
