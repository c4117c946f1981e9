# SPDX-License-Identifier: Apache-2.0
"""The checker is tested by damage: each rule must see its own, and say both sides of it.

Sound VMs come first: a checker that always complains finds nothing.
"""

from __future__ import annotations

import numpy as np
import pytest

from memvirt.vmm.check import CheckLevel, check_machine, check_vm
from memvirt.vmm.checker.links import follow
from memvirt.vmm.checker.violation import MOST_TOLD
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import PageState

from .corruption import (
    OTHER_PPN,
    PRIVATE_PPN,
    UNMAPPED_PPN,
    Subject,
    make_large,
)
from .damage import BOTH
from .damage_frames import PAGES, STORES, damaged_page
from .damage_nested import LARGE, NESTED_CASES, edit_nested
from .damage_shadow import SHADOW_CASES

ALL = {
    f"{group}: {name}": case
    for group, cases in (
        ("pages", PAGES),
        ("stores", STORES),
        ("shadow", SHADOW_CASES),
        ("nested", NESTED_CASES),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("paging", BOTH)
def test_a_sound_vm_is_sound(paging: PagingMode) -> None:
    subject = Subject(paging)
    for level in CheckLevel:
        assert subject.check(level) == []
    assert check_vm(subject.vmm) == []


@pytest.mark.parametrize(
    ("name", "paging"), [(name, mode) for name, case in ALL.items() for mode in case.modes]
)
def test_damage_is_reported_with_both_sides(name: str, paging: PagingMode) -> None:
    case, subject = ALL[name], Subject(paging)
    case.damage(subject)
    before = bytes(subject.machine.content), subject.vmm.pmap.state.copy()
    found = subject.check()
    matching = [
        each
        for each in found
        if each.invariant == case.invariant
        and case.where in each.where
        and case.found in each.found
        and case.expected in each.expected
    ]
    assert matching, [str(each) for each in found]
    # An auditor repairs nothing: the same again.
    assert bytes(subject.machine.content) == before[0]
    assert np.array_equal(subject.vmm.pmap.state, before[1])
    assert subject.check() == found


def large_subject() -> Subject:
    subject = Subject(PagingMode.NESTED, pages=1100, frames=8192, scatter_seed=None)
    make_large(subject)
    assert subject.check() == []
    return subject


@pytest.mark.parametrize("name", LARGE)
def test_damaged_large_pages_are_reported(name: str) -> None:
    damage, *texts = LARGE[name]
    subject = large_subject()
    damage(subject)
    found = subject.check()
    for each in found:
        sides = (each.invariant, each.where, each.found, each.expected)
        if all(text in side for text, side in zip(texts, sides, strict=True)):
            return
    raise AssertionError([str(each) for each in found])


def shadow_of_a_large_page() -> Subject:
    """A guest page of 2 MiB at guest-physical 0, shadowed by a direct table."""
    subject = Subject(PagingMode.SHADOW)
    driver = subject.driver
    driver.vmm.write_physical((2 << 12) + 8 * 5, (0x87).to_bytes(8, "little"))
    driver.read((5 << 21) + (PRIVATE_PPN << 12))
    driver.read((5 << 21) + (OTHER_PPN << 12))
    assert subject.check() == []
    return subject


def test_a_direct_shadow_page_maps_memory_in_order() -> None:
    subject = shadow_of_a_large_page()
    index = subject.shadow_page(1, direct=True)
    subject.shadow_pages["ppn"][index] = 0x40000
    found = [each for each in subject.check() if f"shadow page {index} (level 1)" in each.where]
    assert found
    assert found[0].found == f"PPN {PRIVATE_PPN:#x}"
    assert found[0].expected == f"PPN {0x40000 + PRIVATE_PPN:#x}"


# Whatever the guest does -----------------------------------------------------------------------


@pytest.mark.parametrize("cr3", [64 << 12, 0xFEE0_0000, 0xFFFF_F000, 0xF_FFFF_FFFF_F000, 63 << 12])
@pytest.mark.parametrize("control", [(0x20, 0xD00), (0x1020, 0xD00), (0x20, 0), (0, 0), (0x10, 0)])
@pytest.mark.parametrize("paging", BOTH)
def test_any_cr3_is_the_guests_own_business(
    paging: PagingMode, cr3: int, control: tuple[int, int]
) -> None:
    """Tables beyond memory, in holes, at the local APIC: the guest faults, no rule is broken."""
    subject = Subject(paging)
    for gva in (0, 0x1000, 0x40_0000, 0xFFFF_F000):
        for kind in (0, 1, 2):
            subject.driver.load_control(cr3=cr3, cr4=control[0], efer=control[1])
            subject.driver.attempt(gva, kind)
            assert subject.check() == []


@pytest.mark.parametrize("state", ["ballooned", "swapped", "shared"])
def test_a_guest_table_may_be_anywhere(state: str) -> None:
    """A page that holds a traced guest table loses its frame: the rules hold before and after."""
    subject = Subject(PagingMode.SHADOW)
    table = 3
    if state == "ballooned":
        subject.give_up(table)
    elif state == "swapped":
        subject.vmm.unmap([table])
    else:
        subject.vmm.make_shared(table)
    assert subject.check() == []
    subject.driver.attempt(0, 0)
    assert subject.check() == []


@pytest.mark.parametrize("paging", BOTH)
def test_no_damage_is_too_much(paging: PagingMode) -> None:
    """Random words in everything that is audited: reports, and never an exception."""
    rng = np.random.default_rng(9)
    reported = 0
    for _ in range(60):
        subject = Subject(paging)
        for array in rng.choice(np.array(subject.audited(), object), 3):
            flat = array.reshape(-1)
            for at in rng.integers(0, flat.size, 4).tolist():
                width = flat.dtype.itemsize
                word = int(rng.integers(0, 1 << 63)) >> int(rng.integers(0, 63))
                flat[at] = np.frombuffer(word.to_bytes(8, "little")[:width], flat.dtype)[0]
        reported += bool(subject.check())
    assert reported > 40


# The report itself -----------------------------------------------------------------------------


def test_levels_see_what_they_say() -> None:
    """Metadata alone reads no memory; stores are read at the last level only."""
    subject = Subject(PagingMode.NESTED)
    edit_nested(1, PRIVATE_PPN, flip=3 << 12)(subject)
    assert subject.check(CheckLevel.METADATA) == []
    assert subject.check(CheckLevel.MEMORY) != []
    subject = Subject(PagingMode.NESTED)
    damaged_page(subject)
    assert subject.check(CheckLevel.MEMORY) == []
    assert [each.invariant for each in subject.check(CheckLevel.STORES)] == ["I5"]


def test_many_of_a_kind_are_counted() -> None:
    subject = Subject(PagingMode.NESTED)
    subject.reserve[:100] = subject.machine.frames
    told = [each for each in subject.check() if each.expected == "a RESERVE frame of VM 0"]
    assert len(told) == MOST_TOLD
    assert "84 more like these" in {each.found for each in subject.check()}


def test_two_vms_may_not_use_one_store_slot() -> None:
    """A store that two VMs share: their slots are compared with each other's."""
    subject = Subject(PagingMode.NESTED)
    other = subject.another_vm(vm_id=1)
    content = np.full((1, 4096), 5, np.uint8)
    for vmm in (subject.vmm, other):
        vmm.pmap.frame[UNMAPPED_PPN + 1] = int(
            vmm.contents.stores["swap"].put(np.array([UNMAPPED_PPN + 1]), content)[0]
        )
        vmm.pmap.set_state(UNMAPPED_PPN + 1, PageState.SWAPPED)
    both = [subject.vmm, other]
    assert check_machine(subject.machine, both) == []
    other.pmap.frame[UNMAPPED_PPN + 1] = subject.vmm.pmap.frame[UNMAPPED_PPN + 1]
    texts = [str(each) for each in check_machine(subject.machine, both)]
    assert any("of VM 0 and" in text and "of VM 1" in text for text in texts)
    assert any("a page that no PPN names" in text for text in texts)


def test_a_list_that_joins_another_is_followed_once() -> None:
    heads, following = np.array([0, 2, -1], np.int32), np.array([1, -1, 1], np.int32)
    found = []
    lists = follow(heads, following, lambda i: f"list {i}")
    try:
        while True:
            found.append(next(lists))
    except StopIteration as end:
        links = end.value
    assert sorted(links.link.tolist()) == [0, 1, 2]
    assert [each.expected for each in found] == ["each element once"]
