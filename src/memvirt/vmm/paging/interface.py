# SPDX-License-Identifier: Apache-2.0
"""What a VMM asks of its page tables, whichever way they translate.

One object per VM, made by ``build.new_paging``. Its compiled half answers accesses
(``translate.access``); this half is what the host does to the tables while the processor is
stopped. A new way to page implements this class, gets a name in ``mode.PagingMode``, a line in
``build.py`` and one in ``translate.access``.
"""

from __future__ import annotations

from typing import Protocol

from memvirt.address import MachinePageNumber, PhysicalPageNumber, PpnArray

from .mode import PagingMode


class Paging(Protocol):
    """The page tables of one VM."""

    @property
    def mode(self) -> PagingMode: ...

    @property
    def remaps(self) -> bool:
        """True if pages can be taken from the guest without its knowledge."""
        ...

    @property
    def has_large_pages(self) -> bool:
        """True if one entry can map a large page of machine memory."""
        ...

    @property
    def table_frames(self) -> int:
        """Frames that the tables take."""
        ...

    def invalidate(self, ppns: PpnArray) -> int:
        """Drop every entry that maps one of ``ppns``; returns how many.

        Obligation: before guest code runs again the processor's translations are flushed. Raises
        ValueError if the tables do not remap.
        """
        ...

    def forget_guest_tables(self) -> None:
        """A guest page table changed otherwise than by the guest's own stores.

        Obligation: as for ``invalidate``.
        """
        ...

    def release_table_below(self, first_ppn: PhysicalPageNumber) -> MachinePageNumber | None:
        """Unlink the table that a large entry for ``first_ppn`` replaces; its MPN, or None.

        All its entries have been dropped. The caller releases the frame.
        """
        ...
