# SPDX-License-Identifier: Apache-2.0
"""Damage to pages, frames, reserves and stores."""

from __future__ import annotations

from memvirt.machine.memory import NOBODY, FrameKind
from memvirt.mmu.page_state import FLAG_UNWRITTEN, FLAG_WRITE_CACHED
from memvirt.vmm.pmap import PageState

from .corruption import (
    COMPRESSED_PPN,
    COMPRESSED_TOO,
    FLAGS,
    OTHER_PPN,
    PRIVATE_PPN,
    SHARED_PPN,
    SHARED_TOO,
    SWAPPED_PPN,
    SWAPPED_TOO,
    Damage,
    Subject,
)
from .damage import BOTH, NESTED, SHADOW, Case, count, frame_field, put

# Pages and frames ------------------------------------------------------------------------------


def two_pages_in_one_frame(s: Subject) -> None:
    s.vmm.pmap.frame[PRIVATE_PPN] = s.frame(OTHER_PPN)


def frame_beyond_the_machine(s: Subject) -> None:
    s.vmm.pmap.frame[PRIVATE_PPN] = 0xFFFF_FFF0


def lost_frame(s: Subject) -> None:
    s.vmm.pmap.state[PRIVATE_PPN] = PageState.UNMAPPED


def miscounted_pages(s: Subject) -> None:
    s.vmm.pmap.counts[PageState.PRIVATE] += 1


def frame_of_no_vm(s: Subject) -> None:
    s.machine.owner[s.frame(PRIVATE_PPN)] = 77


def free_frame_twice(s: Subject) -> None:
    s.link(int(s.free_list[1]), int(s.free_list[0]))


def used_frame_on_the_free_list(s: Subject) -> None:
    s.link(int(s.free_list[0]), s.frame(PRIVATE_PPN))


def free_list_beyond_the_machine(s: Subject) -> None:
    s.link(int(s.free_list[0]), s.machine.frames + 5)


def vmkernel_frame_with_an_owner(s: Subject) -> None:
    mpn = s.machine.allocate(kind=FrameKind.VMKERNEL)
    s.machine.owner[mpn] = s.vmm.vm_id


def leaked_frame(kind: FrameKind) -> Damage:
    def damage(s: Subject) -> None:
        s.machine.allocate(kind=kind, owner=s.vmm.vm_id, detail=1)

    return damage


def dirty_reserve(s: Subject) -> None:
    s.machine.page(int(s.reserve[3]))[0x123] = 0xAB


def reserve_twice(s: Subject) -> None:
    s.reserve[0] = s.reserve[1]


def reserve_of_another_kind(s: Subject) -> None:
    s.machine.kind[int(s.reserve[2])] = FrameKind.GUEST


def reserve_beyond_the_machine(s: Subject) -> None:
    s.reserve[0] = s.machine.frames


PAGES = {
    "unknown state": Case(
        BOTH, put("state", PRIVATE_PPN, 9), "I4", f"PPN {PRIVATE_PPN:#x}", "state 9", "UNMAPPED"
    ),
    "private frame of another PPN": Case(
        BOTH,
        frame_field(PRIVATE_PPN, "guest_ppn", 9),
        "I4",
        f"PPN {PRIVATE_PPN:#x}",
        "detail 0x9",
        f"of PPN {PRIVATE_PPN:#x}",
    ),
    "private frame of another kind": Case(
        BOTH,
        frame_field(PRIVATE_PPN, "kind", FrameKind.RESERVE),
        "I4",
        f"PPN {PRIVATE_PPN:#x}",
        "RESERVE",
        "a GUEST frame",
    ),
    "two pages in one frame": Case(
        BOTH,
        two_pages_in_one_frame,
        "I4",
        f"PPN {PRIVATE_PPN:#x}",
        f"detail {OTHER_PPN:#x}",
        f"of PPN {PRIVATE_PPN:#x}",
    ),
    "frame beyond the machine": Case(
        BOTH, frame_beyond_the_machine, "I4", f"PPN {PRIVATE_PPN:#x}", "beyond", "a GUEST frame"
    ),
    "shared frame of another salt": Case(
        BOTH,
        frame_field(SHARED_PPN, "guest_ppn", -6),
        "I6",
        f"PPN {SHARED_PPN:#x}",
        "SHARED",
        "a SHARED frame of salt 0",
    ),
    "shared page in a frame of one VM": Case(
        BOTH,
        frame_field(SHARED_PPN, "kind", FrameKind.GUEST),
        "I6",
        f"PPN {SHARED_TOO:#x}",
        "GUEST",
        "a SHARED frame",
    ),
    "too many references": Case(
        BOTH,
        frame_field(SHARED_PPN, "references", 3),
        "I3",
        "SHARED",
        "3 references",
        "2: the pages that map it",
    ),
    "too few references": Case(
        BOTH,
        frame_field(SHARED_PPN, "references", 1),
        "I3",
        "SHARED",
        "1 references",
        "2: the pages that map it",
    ),
    "shared frame with an owner": Case(
        BOTH, frame_field(SHARED_PPN, "owner", 0), "I4", "frame", "owner 0", f"owner {NOBODY}"
    ),
    "ballooned page with a frame": Case(
        BOTH,
        put("flags", PRIVATE_PPN, FLAGS["BALLOONED"]),
        "I4",
        f"PPN {PRIVATE_PPN:#x}",
        "ballooned and PRIVATE",
        "ballooned and UNMAPPED",
    ),
    "pages miscounted": Case(
        BOTH, miscounted_pages, "I4", "that are PRIVATE", " pages", " counted"
    ),
    "unwritten page without a frame of its own": Case(
        BOTH,
        put("flags", SHARED_PPN, FLAG_UNWRITTEN),
        "I7",
        f"PPN {SHARED_PPN:#x}",
        "unwritten and SHARED",
        "PRIVATE",
    ),
    "unwritten page the processor may write to": Case(
        BOTH,
        put("flags", PRIVATE_PPN, FLAG_UNWRITTEN | FLAG_WRITE_CACHED),
        "I7",
        f"PPN {PRIVATE_PPN:#x}",
        "unwritten and one",
        "no translation",
    ),
    "balloon miscounted": Case(
        BOTH, count("ballooned_pages"), "I4", "balloon", "1 pages", "2 counted"
    ),
    "lost frame": Case(
        BOTH, lost_frame, "I4", "orphan", f"detail {PRIVATE_PPN:#x}", "a page of VM 0"
    ),
    "frame of no VM": Case(BOTH, frame_of_no_vm, "I4", "orphan", "owner 77", "owned by a VM of 0"),
    "free frame twice": Case(
        BOTH, free_frame_twice, "I4", "free list", "twice", "every frame once"
    ),
    "used frame on the free list": Case(
        BOTH, used_frame_on_the_free_list, "I4", "free list", "listed: MPN", "free if and only if"
    ),
    "free list beyond the machine": Case(
        BOTH, free_list_beyond_the_machine, "I4", "free list", "beyond", "frames of this machine"
    ),
    "frame of an unknown kind": Case(
        BOTH, frame_field(PRIVATE_PPN, "kind", 55), "I4", "frame", "kind 55", "one of FREE"
    ),
    "VMkernel's frame with an owner": Case(
        BOTH, vmkernel_frame_with_an_owner, "I4", "frame", "VMKERNEL owner 0", f"owner {NOBODY}"
    ),
    "leaked RESERVE frame": Case(
        BOTH, leaked_frame(FrameKind.RESERVE), "I4", "orphan", "RESERVE", "in the reserve of VM 0"
    ),
    "leaked COMPRESSED frame": Case(
        BOTH, leaked_frame(FrameKind.COMPRESSED), "I4", "VM 0", "2 COMPRESSED frames", "1"
    ),
    "leaked SHADOW frame": Case(
        SHADOW, leaked_frame(FrameKind.SHADOW), "I4", "shadow pool", "SHADOW", "a shadow page"
    ),
    "leaked NESTED frame": Case(
        NESTED, leaked_frame(FrameKind.NESTED), "I4", "nested tables", "NESTED", "linked"
    ),
    "dirty frame in the reserve": Case(
        BOTH, dirty_reserve, "I4", "reserve of VM 0: MPN", "0xab at byte 0x123", "zeroes"
    ),
    "reserve frame twice": Case(
        BOTH, reserve_twice, "I4", "reserve of VM 0", "twice", "every frame once"
    ),
    "reserve frame of another kind": Case(
        BOTH, reserve_of_another_kind, "I4", "reserve of VM 0", "GUEST", "a RESERVE frame"
    ),
    "reserve beyond the machine": Case(
        BOTH, reserve_beyond_the_machine, "I4", "reserve of VM 0", "beyond", "a RESERVE frame"
    ),
}


# Stores ----------------------------------------------------------------------------------------


def slot_twice(first: int, second: int) -> Damage:
    def damage(s: Subject) -> None:
        s.vmm.pmap.frame[first] = s.slot(second)

    return damage


def slot_of_no_page(s: Subject) -> None:
    s.vmm.pmap.state[SWAPPED_PPN] = PageState.UNMAPPED


def no_cache(s: Subject) -> None:
    s.vmm.contents._stores.pop("compress")


def damaged_page(s: Subject) -> None:
    held = s.vmm.contents.stores["swap"]._pages  # type: ignore[attr-defined]
    checksum, packed = held[s.slot(SWAPPED_PPN)]
    held[s.slot(SWAPPED_PPN)] = (checksum ^ 1, packed)


STORES = {
    "two pages in one swap slot": Case(
        BOTH,
        slot_twice(SWAPPED_PPN, SWAPPED_TOO),
        "I4",
        "slot",
        f"PPN {SWAPPED_PPN:#x} of VM 0 and PPN {SWAPPED_TOO:#x} of VM 0",
        "one page",
    ),
    "two pages in one compressed slot": Case(
        BOTH,
        slot_twice(COMPRESSED_PPN, COMPRESSED_TOO),
        "I4",
        "slot",
        f"PPN {COMPRESSED_PPN:#x} of VM 0 and",
        "one page",
    ),
    "swap slot that does not exist": Case(
        BOTH,
        put("frame", SWAPPED_PPN, 0x777),
        "I4",
        f"PPN {SWAPPED_PPN:#x}",
        "kept in swap slot 0x777",
        "a slot that holds a page",
    ),
    "compressed slot that does not exist": Case(
        BOTH,
        put("frame", COMPRESSED_PPN, 0x777),
        "I4",
        f"PPN {COMPRESSED_PPN:#x}",
        "kept in compress slot 0x777",
        "a slot that holds a page",
    ),
    "slot of no page": Case(BOTH, slot_of_no_page, "I4", "slot", "no PPN names", "of the guest's"),
    "compressed page without a cache": Case(
        BOTH, no_cache, "I4", f"PPN {COMPRESSED_PPN:#x}", "COMPRESSED in store", "no such store"
    ),
    "compressed page of another PPN": Case(
        BOTH,
        slot_twice(COMPRESSED_PPN, COMPRESSED_TOO),
        "I4",
        "page in compress slot",
        f"kept for PPN {COMPRESSED_PPN:#x}",
        "the PPN that names the slot",
    ),
    "kept page that cannot be had back": Case(
        BOTH, damaged_page, "I5", f"PPN {SWAPPED_PPN:#x}", "slot", "the page that was kept"
    ),
}
