# SPDX-License-Identifier: Apache-2.0
"""What may be changed of a running VM between two rounds of its host, from Python.

Every change is an event of the host with its reason. The next round acts upon it.
"""

from __future__ import annotations

from memvirt.address import PAGE_BYTES
from memvirt.errors import MemvirtError
from memvirt.host.hosted_vm import HostedVm
from memvirt.size import parse_size
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.vmkernel import VmKernel

__all__ = ["UnknownVm", "VmControl"]


class UnknownVm(MemvirtError, ValueError):
    """No VM of this name is running; the message has those that are, or says that it has ended."""


class VmControl:
    """One running VM of a host. Sizes are bytes, or text such as "32M".

    Every method raises UnknownVm once the VM has ended. A call that raises has changed nothing.
    """

    def __init__(self, entry: HostedVm, kernel: VmKernel) -> None:
        self._entry = entry
        self._kernel = kernel

    @property
    def _vm(self) -> ManagedVm:
        if self._entry.managed is None:
            raise UnknownVm(f"VM {self._entry.name} has ended")
        return self._entry.managed

    def change(
        self,
        *,
        shares: int | None = None,
        reservation: int | str | None = None,
        limit: int | str | None = None,
        reason: str = "changed by hand",
    ) -> None:
        """Change shares, reservation or limit. A limit of the VM's memory is none.

        Raises SizeError, ValueError for amounts that cannot be, AdmissionError or SwapSpaceError
        if the reservation cannot be had.
        """
        vm, swap = self._vm, self._entry.swap
        wanted, most = _pages(reservation, "reservation"), _pages(limit, "limit")
        if swap is not None and wanted is not None:
            swap.grow(vm.settings.memory - wanted)
        self._kernel.controls.change(
            vm, shares=shares, reservation=wanted, limit=most, reason=reason
        )

    def set_balloon(self, size: int | str | None, *, reason: str = "set by hand") -> None:
        """Give the balloon a target; None leaves it to policy again.

        Raises SizeError, and ValueError for a balloon that cannot be.
        """
        self._kernel.controls.set_balloon(self._vm, _pages(size, "balloon"), reason)

    def pause(self, *, reason: str = "paused by hand") -> None:
        """Keep the VM from running until ``resume``. Its memory can be reclaimed meanwhile."""
        self._kernel.controls.hold(self._vm, reason)

    def resume(self) -> None:
        """Let the VM go on with the next round."""
        self._kernel.controls.release(self._vm)

    def restore(self, size: int | str, *, reason: str = "brought back by hand") -> int:
        """Bring evicted memory back before the guest asks for it; returns bytes.

        No more than machine memory has to spare, and the VM's limit leaves. Raises SizeError.
        """
        pages = _pages(size, "memory to restore") or 0
        return self._kernel.controls.restore(self._vm, pages, reason) * PAGE_BYTES


def _pages(size: int | str | None, what: str) -> int | None:
    """Pages of a size as people write it; 0 is one."""
    if size is None or size == 0:
        return None if size is None else 0
    return parse_size(size, what=what) // PAGE_BYTES
