# SPDX-License-Identifier: Apache-2.0
"""What is audited of the VMs of a host: one alone, and what the VMkernel remembers of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memvirt.host.hosted_vm import HostedVm
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.check import Violation, check_vm


def check_one(entry: HostedVm) -> list[Violation]:
    """Violations inside one VM that has been built."""
    assert entry.vm is not None
    return check_vm(entry.vm.vmm)


def unnoticed_writes(sharing: PageSharing, entries: Iterable[HostedVm]) -> Iterator[Violation]:
    """Pages that count as unwritten, and have not the content the scan remembers (I7)."""
    for entry in entries:
        if entry.managed is not None:
            for ppn in sharing.wrong_keys(entry.managed.guest).tolist():
                where = f"PPN {ppn:#x} of {entry.name}, unwritten since it was hashed"
                yield Violation("I7", where, "another hash", "the same")
