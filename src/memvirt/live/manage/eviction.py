# SPDX-License-Identifier: Apache-2.0
"""Eviction of a live VM's pages to the host's swap: ``vmkernel.protocols.PageReclaim``.

The guest is not asked and notices nothing but the time its next access takes. The host's swap is
whatever it has: zram (then it is compression), zswap before a disk, a disk.

Two levers, in this order: advice on the very pages that were chosen (``pageout``), and for what the
kernel keeps in spite of it the VM's control group (``group_reclaim``), if it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from memvirt.address import PpnArray
from memvirt.live.errors import LiveError
from memvirt.live.host_memory import HostPages, read_host_pages
from memvirt.live.page_states import LivePageState, PageStates
from memvirt.live.vm import LiveVm
from memvirt.vmkernel.protocols import Eviction, Flags, Place

from .group_reclaim import GroupReclaim
from .pageout import PAGEOUT, Adviser, bring_back, pageable, ranges_of

_NO_PAGES = PpnArray(np.zeros(0, np.int64))
_SWAP_MARGIN = 1024  # pages of swap that are left to others


class EvictedGuest(Protocol):
    """What eviction needs to know of a VM."""

    vm: LiveVm
    pages: int
    has_pager: bool
    group: GroupReclaim | None

    def expect_out(self, pages: int) -> object:
        """Up to ``pages`` pages are about to be in swap because of memvirt: put that on record."""
        ...

    def note(self, text: str) -> object:
        """An event of this VM."""
        ...

    @property
    def states(self) -> PageStates | None:
        """Of all its pages, at the last look; None if there was none."""
        ...

    def rescan(self) -> None:
        """Look at all pages again."""
        ...


class HostSwap:
    """The swap space of this host, looked at anew when asked."""

    def __init__(self, host_pages: Callable[[], HostPages] = read_host_pages) -> None:
        self._host_pages = host_pages

    @property
    def total(self) -> int:
        return self._host_pages().swap_total

    @property
    def free(self) -> int:
        """Pages that may still be sent there."""
        pages = self._host_pages()
        return max(pages.swap_total - pages.swap_used - _SWAP_MARGIN, 0)


class KernelReclaim:
    """Pages of one VM by the host's kernel. Page numbers are RAM page indices.

    ``put_total`` and ``taken_total`` count pages this object sent away and brought back.
    """

    def __init__(self, guest: EvictedGuest, swap: HostSwap, *, advice: bool, dry_run: bool) -> None:
        self._guest = guest
        self._swap = swap
        self._advice = advice
        self._dry_run = dry_run
        self._adviser: Adviser | None = None
        self._pageable = pageable(guest.vm.layout)
        self._pretended = np.zeros(guest.pages, np.bool_)
        self.put_total = 0
        self.taken_total = 0
        self.out = 0  # pages sent away by memvirt and not seen back
        self.trouble = ""

    def close(self) -> None:
        """Give the process's descriptor back; may be called again."""
        if self._adviser is not None:
            self._adviser.close()
            self._adviser = None

    def layout_changed(self) -> None:
        """The VM's RAM blocks are others now, of as many pages in all."""
        self._pageable = pageable(self._guest.vm.layout)

    @property
    def levers(self) -> list[str]:
        """What can be used on this VM, in order."""
        advice = ["advice on single pages (MADV_PAGEOUT)"] if self._advice else []
        group = self._guest.group
        return advice + ([group.lever] if group is not None and not group.impossible else [])

    @property
    def impossible(self) -> str:
        """Why no page of this VM can go to swap; "" if some can."""
        if not self._advice and self._guest.group is None:
            return "it has no control group, and pageout is off"
        if not self._advice and self._guest.group is not None and self._guest.group.impossible:
            return self._guest.group.impossible
        if not self._pageable.any():
            return "its memory is of a kind that is never swapped"
        if self._guest.has_pager:
            return "its memory has a pager (userfaultfd)"
        if self._swap.total == 0:
            return "this host has no swap space; zram gives it some"
        return ""

    @property
    def pretended(self) -> int:
        """Dry run: pages that would be in swap."""
        return int(np.count_nonzero(self._pretended))

    def reclaimable_pages(self) -> PpnArray:
        """Private pages. Merged ones cannot be sent away by advice."""
        states = self._guest.states
        if states is None:
            return _NO_PAGES
        private = states.state == LivePageState.PRIVATE
        return PpnArray(np.flatnonzero(private & self._pageable & ~self._pretended))

    def reclaimable(self, ppns: PpnArray) -> Flags:
        """Which of ``ppns`` are private and can be sent away by advice."""
        states = self._guest.states
        if states is None:
            return np.zeros(ppns.size, np.bool_)
        private = states.state[ppns] == LivePageState.PRIVATE
        return np.asarray(private & self._pageable[ppns] & ~self._pretended[ppns])

    def shared_pages(self) -> PpnArray:
        return _NO_PAGES

    def evict(self, ppns: PpnArray, places: Sequence[Place]) -> Eviction:
        """Send pages to swap, if the host's policy has that; what stays is refused."""
        wanted = int(ppns.size)
        if all(place.name != "swap" for place in places):
            return Eviction(refused=wanted)
        taken = np.asarray(ppns[: self._swap.free], np.int64)
        if self._dry_run:
            self._pretended[taken] = True
            self._guest.rescan()
            return Eviction({"swap": int(taken.size)}, wanted - int(taken.size))
        if taken.size == 0:
            self.trouble = "the host's swap space is full"
            return Eviction(refused=wanted)
        self.trouble = ""
        gone = freed = 0
        known = True  # what became of the pages
        try:
            self._guest.expect_out(self.out + int(taken.size))
        except OSError as error:  # what is not on record is not done
            self.trouble = str(error)
            return Eviction(refused=wanted)
        try:
            gone = self._advise(taken) if self._advice else 0
        except (LiveError, OSError) as error:
            self.trouble = str(error)  # the group may still give what did not go
            known, gone = self._look_again(taken)
        try:
            if known and gone < taken.size:
                by_group, freed = self._by_group(int(taken.size) - gone)
                gone += by_group
        except (LiveError, OSError) as error:
            self.trouble = str(error)
        if gone == freed == 0 and not self.trouble:
            self.trouble = "the host's kernel keeps the pages it was asked to send away"
        self.put_total += gone
        self.out += gone
        return Eviction({"swap": gone}, max(wanted - gone, 0))

    def _advise(self, taken: np.ndarray[Any, Any]) -> int:
        """Send these very pages away; how many went. Raises LiveError, OSError."""
        self._of_process().advise(ranges_of(self._guest.vm.layout, taken), PAGEOUT)
        return self._gone_of(taken)

    def _gone_of(self, taken: np.ndarray[Any, Any]) -> int:
        """How many of these pages are in swap now. Raises LiveError, OSError."""
        self._guest.rescan()
        states = self._guest.states
        assert states is not None
        return int(np.count_nonzero(states.state[taken] == LivePageState.SWAPPED))

    def _look_again(self, taken: np.ndarray[Any, Any]) -> tuple[bool, int]:
        """After advice has failed on the way: is it known how many pages went, and how many."""
        try:
            return True, self._gone_of(taken)
        except (LiveError, OSError):
            return False, 0

    def _by_group(self, left: int) -> tuple[int, int]:
        """Have the VM's group reclaim what is left; how many of its pages went to swap, and by how
        many pages the group's use fell in all. Raises LiveError, OSError.
        """
        group = self._guest.group
        if group is None or group.impossible:
            return 0, 0
        before = self._in_swap()
        freed = group.take(left)
        self._guest.rescan()
        gone = max(self._in_swap() - before, 0)
        why = "advice left them" if self._advice else "pageout is off"
        self._guest.note(
            f"{group.lever}: {left} pages asked for since {why}; {gone} went to swap, its use fell "
            f"by {freed}"
        )
        return gone, freed

    def _in_swap(self) -> int:
        states = self._guest.states
        return 0 if states is None else int(states.where(LivePageState.SWAPPED).size)

    def restore(self, most: int) -> int:
        """Bring swapped pages back, those that memvirt sent away; returns how many came."""
        if self._dry_run:
            pages = np.flatnonzero(self._pretended)[:most]
            self._pretended[pages] = False
            self._guest.rescan()
            return int(pages.size)
        states = self._guest.states
        if states is None:
            return 0
        pages = np.flatnonzero((states.state == LivePageState.SWAPPED) & self._pageable)
        self.out = min(self.out, int(pages.size))  # the guest has fetched the others itself
        pages = pages[: min(most, self.out)]
        if pages.size == 0:
            return 0
        try:
            bring_back(self._of_process(), self._guest.vm.layout, np.asarray(pages))
            self._guest.rescan()
        except (LiveError, OSError) as error:
            self.trouble = str(error)
            return 0
        after = self._guest.states
        assert after is not None
        back = int(np.count_nonzero(after.state[pages] != LivePageState.SWAPPED))
        self.taken_total += back
        self.out -= back
        return back

    def submit_writes(self) -> None:
        """Nothing: the kernel writes by itself."""

    def _of_process(self) -> Adviser:
        if self._adviser is None:
            self._adviser = Adviser(self._guest.vm.process)
        return self._adviser
