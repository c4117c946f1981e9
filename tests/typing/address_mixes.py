# SPDX-License-Identifier: Apache-2.0
"""Deliberate mixes of address spaces. Never run: mypy must reject each marked line, and no other.

A line ends in ``# mix`` or, if one kind of error alone will do, in ``# mix: code``, where code is
mypy's, without brackets. Extend it with every surface that takes or gives an address: one line that
is right and one for each wrong space.
"""

from __future__ import annotations

import numpy as np

from memvirt.address import (
    GuestPhysicalAddress,
    GuestVirtualAddress,
    HostVirtualAddress,
    MachineAddress,
    MachinePageNumber,
    MpnArray,
    PhysicalPageNumber,
    PpnArray,
    guest_physical_address,
    is_canonical,
    machine_address,
    machine_page_number,
    physical_page_number,
)
from memvirt.cpu.unicorn.engine_state import EngineState
from memvirt.cpu.unicorn.guest_memory import read_guest
from memvirt.live.address_map import frame_behind
from memvirt.live.reverse_map import gvas_of_ppn, ppns_of_frame
from memvirt.live.vm import LiveVm
from memvirt.live.walk import GuestWalker
from memvirt.machine.memory import FrameKind, MachineMemory
from memvirt.mmu.access import READ
from memvirt.mmu.guest_walk import guest_walk
from memvirt.mmu.mmu_state import MmuState
from memvirt.mmu.second_level import second_level
from memvirt.mmu.shadow_walk import shadow_walk
from memvirt.observe.address_map import map_address
from memvirt.observe.view import VmView
from memvirt.platform.balloon import BalloonMemory
from memvirt.platform.boot.flat import load_flat
from memvirt.platform.boot.image import Segment
from memvirt.share_table import ShareTable
from memvirt.vmkernel.protocols import ActivitySampling, FrameSharing, PageReclaim
from memvirt.vmm.content import PageContents
from memvirt.vmm.frames import frame_ppn, resolve_page
from memvirt.vmm.monitor import VirtualMachineMonitor
from memvirt.vmm.paging.shadow_table import drop_mappings
from memvirt.vmm.pmap import Pmap
from memvirt.vmm.translate import access
from memvirt.vmm.vmm_state import VmmState

hva = HostVirtualAddress(0x7F00_DEAD_B000)
gva = GuestVirtualAddress(0x7F00_1000)
gpa = GuestPhysicalAddress(0x5678)
ppn = PhysicalPageNumber(5)
mpn = MachinePageNumber(77)
address = MachineAddress(0x4D_0678)


def arithmetic() -> None:
    """``memvirt.address``: between an address and its page, inside one space only."""
    physical_page_number(gpa)
    physical_page_number(gva)  # mix: arg-type
    physical_page_number(address)  # mix: arg-type
    physical_page_number(ppn)  # mix: arg-type
    physical_page_number(0x5678)  # mix: arg-type
    machine_page_number(address)
    machine_page_number(gpa)  # mix: arg-type
    machine_page_number(gva)  # mix: arg-type
    machine_page_number(mpn)  # mix: arg-type
    guest_physical_address(ppn, 0x678)
    guest_physical_address(mpn, 0x678)  # mix: arg-type
    guest_physical_address(gpa)  # mix: arg-type
    machine_address(mpn, 0x678)
    machine_address(ppn, 0x678)  # mix: arg-type
    machine_address(address)  # mix: arg-type
    is_canonical(gva)
    is_canonical(gpa)  # mix: arg-type
    is_canonical(address)  # mix: arg-type


def results() -> None:
    """What comes out has its space too."""
    a: PhysicalPageNumber = physical_page_number(gpa)
    b: MachinePageNumber = physical_page_number(gpa)  # mix: assignment
    c: MachinePageNumber = machine_page_number(address)
    d: PhysicalPageNumber = machine_page_number(address)  # mix: assignment
    e: GuestPhysicalAddress = guest_physical_address(a)
    f: MachineAddress = guest_physical_address(a)  # mix: assignment
    g: MachineAddress = machine_address(c)
    h: GuestPhysicalAddress = machine_address(c)  # mix: assignment
    print(a, b, c, d, e, f, g, h)


def bare_numbers() -> None:
    """Plain arithmetic leaves the space: what comes of it is a number like any other."""
    following: PhysicalPageNumber = ppn + 1  # mix: assignment
    shifted: MachinePageNumber = address >> 12  # mix: assignment
    number: int = ppn + 1
    print(following, shifted, number)


def frames(machine: MachineMemory) -> None:
    """``machine.memory``: runs of frames."""
    first = machine.allocate_run(9, kind=FrameKind.GUEST)
    machine_address(first)
    guest_physical_address(first)  # mix: arg-type
    contiguous: PhysicalPageNumber = machine.allocate_contiguous(4, kind=FrameKind.GUEST)  # mix
    print(contiguous)


def arrays(ppns: PpnArray, mpns: MpnArray) -> None:
    """Elements and parts of an array stay in its space; what is computed leaves it."""
    a: PhysicalPageNumber = ppns[0]
    b: MachinePageNumber = ppns[0]  # mix: assignment
    c: MachinePageNumber = mpns[0]
    d: PhysicalPageNumber = mpns[0]  # mix: assignment
    e: PpnArray = ppns[1:]
    f: MpnArray = ppns[1:]  # mix: assignment
    g: MpnArray = mpns[mpns > 5]
    h: PpnArray = mpns[mpns > 5]  # mix: assignment
    i: PpnArray = ppns + 1  # mix: assignment
    j: MpnArray = np.flatnonzero(mpns)  # mix: assignment
    k: list[PhysicalPageNumber] = ppns.tolist()
    m: list[MachinePageNumber] = ppns.tolist()  # mix: assignment
    for one in ppns:
        machine_address(one)  # mix: arg-type
    n: PpnArray = mpns  # mix: assignment
    o: MpnArray = ppns  # mix: assignment
    print(a, b, c, d, e, f, g, h, i, j, k, m, n, o)


def machine_memory(machine: MachineMemory, ppns: PpnArray) -> None:
    """``machine.memory``: content and references, by MPN."""
    machine.page(mpn)
    machine.page(ppn)  # mix: arg-type
    machine.page(address)  # mix: arg-type
    machine.page(gpa)  # mix: arg-type
    machine.page(77)  # mix: arg-type
    machine.release(machine.allocate(3, kind=FrameKind.GUEST))
    machine.release(ppns)  # mix: arg-type
    machine.release(ppn)  # mix: arg-type
    machine.add_references(mpn)
    machine.add_references(ppn)  # mix: arg-type
    machine.share_salt(ppns)  # mix: arg-type
    owned: PpnArray = machine.owned_by(1)  # mix: assignment
    print(owned)


def pmap_of_a_vm(pmap: Pmap, ppns: PpnArray, mpns: MpnArray) -> None:
    """``vmm.pmap``: PPN in, state and MPN out."""
    a: MachinePageNumber = pmap.mpn_of(ppn)
    b: PhysicalPageNumber = pmap.mpn_of(ppn)  # mix: assignment
    pmap.mpn_of(mpn)  # mix: arg-type
    pmap.mpn_of(gpa)  # mix: arg-type
    pmap.state_of(mpn)  # mix: arg-type
    pmap.state_of(gpa)  # mix: arg-type
    pmap.check(5)  # mix: arg-type
    c: MpnArray = pmap.mpns_of(ppns)
    d: PpnArray = pmap.mpns_of(ppns)  # mix: assignment
    pmap.mpns_of(mpns)  # mix: arg-type
    pmap.in_large_page(mpns)  # mix: arg-type
    e: MpnArray = pmap.resident()  # mix: assignment
    print(a, b, c, d, e)


def monitor(vmm: VirtualMachineMonitor, ppns: PpnArray, mpns: MpnArray) -> None:
    """``vmm.monitor``: what the host does to a VM's memory."""
    vmm.read_physical(gpa, 16)
    vmm.read_physical(gva, 16)  # mix: arg-type
    vmm.read_physical(address, 16)  # mix: arg-type
    vmm.read_physical(ppn, 16)  # mix: arg-type
    vmm.write_physical(gva, b"")  # mix: arg-type
    vmm.write_physical(address, b"")  # mix: arg-type
    vmm.read_page(ppn)
    vmm.read_page(mpn)  # mix: arg-type
    vmm.read_page(gpa)  # mix: arg-type
    vmm.bring_back(mpn, write=True)  # mix: arg-type
    vmm.move(ppns)
    vmm.move(mpns)  # mix: arg-type
    vmm.unmap(mpns)  # mix: arg-type
    vmm.unmap([ppn])
    vmm.unmap([mpn])  # mix: list-item
    vmm.share(ppns, mpns)
    vmm.share(mpns, ppns)  # mix: arg-type
    vmm.share(ppns, ppns)  # mix: arg-type
    vmm.may_share(ppns)  # mix: arg-type
    vmm.notice_writes(mpns)  # mix: arg-type
    vmm.unwritten(mpns)  # mix: arg-type
    vmm.begin_sample(mpns)  # mix: arg-type
    vmm.make_large(mpn)  # mix: arg-type
    ours: PhysicalPageNumber = vmm.make_shared(ppn)  # mix: assignment
    print(ours)


def contents(where: PageContents, mpns: MpnArray) -> None:
    """``vmm.content``: where a page's content is."""
    where.locate(ppn)
    where.locate(mpn)  # mix: arg-type
    where.read(mpn)  # mix: arg-type
    where.take_back(mpn, write=True)  # mix: arg-type
    where.move(mpns)  # mix: arg-type
    where.discard(mpns)  # mix: arg-type
    where.replace_frames(mpns, mpns)  # mix: arg-type
    found: PhysicalPageNumber | None = where.locate(ppn).mpn  # mix: assignment
    print(found)


def kernels(mmu: MmuState, vmm: VmmState, engine: EngineState) -> None:
    """Compiled kernels keep their signatures; records keep the spaces of their fields."""
    guest_walk(mmu, gva, READ)
    guest_walk(mmu, gpa, READ)  # mix: arg-type
    guest_walk(mmu, address, READ)  # mix: arg-type
    a: MachineAddress = second_level(mmu, gpa, READ)
    b: GuestPhysicalAddress = second_level(mmu, gpa, READ)  # mix: assignment
    second_level(mmu, gva, READ)  # mix: arg-type
    second_level(mmu, address, READ)  # mix: arg-type
    shadow_walk(mmu, gpa, READ)  # mix: arg-type
    access(vmm, gva, READ)
    access(vmm, gpa, READ)  # mix: arg-type
    resolve_page(vmm, mpn, True)  # mix: arg-type
    resolve_page(vmm, gpa, True)  # mix: arg-type
    frame_ppn(vmm, ppn)  # mix: arg-type
    drop_mappings(vmm, mpn)  # mix: arg-type
    read_guest(engine, gpa, 0, 8)  # mix: arg-type
    mmu.walk_gpa = gpa
    mmu.walk_gpa = gva  # mix: assignment
    mmu.out_machine_address = gpa  # mix: assignment
    mmu.nested_root = ppn  # mix: assignment
    vmm.exit_ppn = mpn  # mix: assignment
    engine.fault_gva = gpa  # mix: assignment
    print(a, b)


def devices(memory: BalloonMemory, mpns: MpnArray) -> None:
    """``platform``: devices speak of guest-physical memory, loaders too."""
    memory.read_physical(gva, 8)  # mix: arg-type
    memory.write_physical(address, b"")  # mix: arg-type
    memory.give_up(mpns)  # mix: arg-type
    Segment(gpa, b"")
    Segment(gva, b"")  # mix: arg-type
    Segment(address, b"")  # mix: arg-type
    load_flat(b"", memory_bytes=0, load_gpa=gva)  # mix: arg-type


def vmkernel(sharing: FrameSharing, sampling: ActivitySampling, reclaim: PageReclaim) -> None:
    """``vmkernel.protocols``: the policy knows pages and frames by number only."""
    ppns, mpns = reclaim.reclaimable_pages(), MpnArray(np.zeros(0))
    sampling.watch(ppns)
    sampling.watch(mpns)  # mix: arg-type
    sharing.share(ppns, mpns)
    sharing.share(mpns, mpns)  # mix: arg-type
    sharing.may_share(ppns)  # mix: arg-type
    sharing.make_shared(mpns)  # mix: arg-type
    sharing.unwritten(mpns)  # mix: arg-type
    sharing.share_known(mpns, ShareTable())  # mix: arg-type
    a: PpnArray = sharing.make_shared(ppns)  # mix: assignment
    b: MpnArray = reclaim.shared_pages()  # mix: assignment
    reclaim.evict(mpns, [])  # mix: arg-type
    print(a, b)


def observers(view: VmView) -> None:
    """``observe``: views and address maps."""
    map_address(view, gva)
    map_address(view, gpa)  # mix: arg-type
    map_address(view, address)  # mix: arg-type
    view.read_page(mpn)  # mix: arg-type
    view.read_entry(gva, 8)  # mix: arg-type
    view.read_table(ppn, 3)  # mix: arg-type
    view.frames[ppn]  # mix
    view.kept[mpn]  # mix
    a: PhysicalPageNumber | None = view.frame_of(ppn)  # mix: assignment
    print(a)


def live_vms(vm: LiveVm, walker: GuestWalker) -> None:
    """``live``: four spaces meet where QEMU runs the VM."""
    frame_behind(vm, gpa, None)
    frame_behind(vm, gva, None)  # mix: arg-type
    frame_behind(vm, address, None)  # mix: arg-type
    frame_behind(vm, hva, None)  # mix: arg-type
    walker.translate(gva)
    walker.translate(gpa)  # mix: arg-type
    walker.translate(hva)  # mix: arg-type
    is_canonical(hva)  # mix: arg-type
    vm.layout.slot_of(gpa)
    vm.layout.slot_of(gva)  # mix: arg-type
    vm.layout.slot_of(hva)  # mix: arg-type
    gvas_of_ppn(vm, walker, ppn)
    gvas_of_ppn(vm, walker, mpn)  # mix: arg-type
    ppns_of_frame(vm, mpn)
    ppns_of_frame(vm, ppn)  # mix: arg-type
    a: MachineAddress | None = vm.layout.host_address_of(gpa)  # mix: assignment
    b: HostVirtualAddress | None = vm.layout.host_address_of(gpa)
    print(a, b)
