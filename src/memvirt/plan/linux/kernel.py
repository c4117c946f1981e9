# SPDX-License-Identifier: Apache-2.0
"""The kernel of a guest in a dump: found, and asked whether it is the one that runs there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memvirt.address import GuestPhysicalAddress, PhysicalPageNumber, physical_page_number
from memvirt.plan.dumps.dump import Dump

from .dump_memory import KernelAddressSpace, PhysicalMemory
from .vmcoreinfo import KernelUnreadable, VmCoreInfo, parse_vmcoreinfo

# Where x86-64 Linux maps its own text, before ``phys_base`` (Documentation/arch/x86/x86_64/mm.rst).
_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_NAMES_BYTES = 6 * 65  # struct new_utsname
_ENCRYPTION_BITS = (1 << 52) - 1


@dataclass(frozen=True)
class Kernel:
    """A Linux kernel whose page tables can be followed."""

    information: VmCoreInfo
    addresses: KernelAddressSpace
    memory: PhysicalMemory


def find_kernel(dump: Dump, texts: Iterable[PhysicalPageNumber]) -> Kernel:
    """The kernel that runs in the guest.

    ``texts``: pages that begin as VMCOREINFO does, for dumps that do not say it themselves. An old
    text may be left in memory (of the kernel before a reboot, or of a crash kernel), so each is
    tried: the right one leads to a kernel that calls itself what the text says. Raises
    KernelUnreadable, DumpError.
    """
    memory = PhysicalMemory(dump)
    found = [dump.vmcoreinfo] if dump.vmcoreinfo else []
    found += [page for ppn in texts if (page := memory.page(ppn)) is not None]
    problem = "no Linux kernel was found in it"
    for text in found:
        information = parse_vmcoreinfo(text)
        if information is None:
            continue
        try:
            return Kernel(information, _address_space(information, memory), memory)
        except KernelUnreadable as error:
            problem = str(error)
    raise KernelUnreadable(problem)


def _address_space(information: VmCoreInfo, memory: PhysicalMemory) -> KernelAddressSpace:
    """Raises KernelUnreadable."""
    if "NUMBER(phys_base)" not in information.numbers:
        raise KernelUnreadable(f"Linux {information.release} is not one for x86-64")
    physical_base = information.numbers["NUMBER(phys_base)"]
    root = information.symbol("swapper_pg_dir") - _START_KERNEL_MAP + physical_base
    if root < 0:
        raise KernelUnreadable(f"the tables of Linux {information.release} lie below address 0")
    levels = 5 if information.numbers.get("NUMBER(pgtable_l5_enabled)") else 4
    encryption = information.numbers.get("NUMBER(sme_mask)", 0) & _ENCRYPTION_BITS
    ppn = physical_page_number(GuestPhysicalAddress(root))
    addresses = KernelAddressSpace(memory, ppn, levels, encryption)
    names = addresses.read(information.symbol("init_uts_ns"), 8 * 65 + _NAMES_BYTES)
    if names is None or information.release.encode() not in names:
        raise KernelUnreadable(
            f"the page tables of Linux {information.release} cannot be followed, or it no longer "
            "runs"
        )
    return addresses
