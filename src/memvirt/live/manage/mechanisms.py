# SPDX-License-Identifier: Apache-2.0
"""Two reclaim mechanisms of live VMs, registered with the VMkernel like any other.

``no-balloon``: OSDI 2002, section 6.3: in state soft "the system reclaims memory using ballooning,
and resorts to paging only in cases where ballooning is not possible". For a live VM that is the
case more often than for ESXi's: there may be no device or no driver, and a balloon may stop short.

``bring-back``: what was sent to swap comes back when there is plenty of memory, a part at a time,
before the guest has to wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from memvirt.vmkernel.ballooning import DEFLATE_PERCENT
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.host_state import CLEAR_PERCENT
from memvirt.vmkernel.managed import ManagedVm
from memvirt.vmkernel.mechanisms import ReclaimContext, ReclaimMechanism
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.policies import RECLAIM
from memvirt.vmkernel.protocols import Place
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.victims import RandomVictims, choose_victims

from .guest import LiveGuest
from .host_plan import HostPlan

NO_BALLOON, BRING_BACK = "no-balloon", "bring-back"
_SWAP = Place("swap")
_PART = 4  # of what is to spare is brought back at a time
_LEAST_PAGES = 256  # to spare that are given back at once
_STEP_PAGES = 16_384  # most pages of one VM brought back at a time


class PageWithoutBalloon(ReclaimMechanism):
    """In state soft, pages of VMs whose balloon cannot give what it should go to swap."""

    def adjust(self, host: ReclaimContext, free: int) -> None:
        if host.host_state is not HostState.SOFT:
            return
        need = host.shortage(free, CLEAR_PERCENT)
        for vm, pages in zip(host.vms, host.revoke(host.vms, need), strict=True):
            why = _why_no_balloon(vm)
            reclaim = vm.guest.reclaim
            if not why or reclaim is None or pages <= 0:
                continue
            victims = choose_victims(vm.guest, pages, RandomVictims(), vm.random)
            if victims.size == 0:
                continue
            placed = reclaim.evict(victims, [_SWAP]).placed.get("swap", 0)
            vm.refresh()
            if placed:
                host.record(vm, Mechanism.SWAP, placed, f"state soft: {why}")


def _why_no_balloon(vm: ManagedVm) -> str:
    """Why a VM's balloon cannot give more; "" if it can, or could not be asked just now."""
    guest = vm.guest
    if not isinstance(guest, LiveGuest) or guest.unmeasured:
        return ""
    if guest.device.ceiling is not None:
        return f"its balloon stopped short at {guest.device.ceiling} pages"
    if guest.balloon is None or not guest.device.connected:
        return guest.monitor_problem or "it has no balloon"
    return ""


class BringBack(ReclaimMechanism):
    """In states better than soft, evicted pages come back as far as there is memory to spare.

    A part of it at a time, to each VM in proportion to what it has away.
    """

    def adjust(self, host: ReclaimContext, free: int) -> None:
        if host.host_state >= HostState.SOFT:
            return
        spare = free - host.border(DEFLATE_PERCENT)
        spare = max(spare // _PART, min(spare, _LEAST_PAGES))
        away = [(vm, pages) for vm in host.vms if (pages := _away(vm)) > 0]
        total = sum(pages for _, pages in away)
        for vm, pages in away:
            reclaim = vm.guest.reclaim
            part = min(pages, -(-spare * pages // total))
            restored = reclaim.restore(part) if reclaim is not None and part > 0 else 0
            if restored:
                vm.refresh()
                state = host.host_state.name.lower()
                host.record(vm, Mechanism.RESTORE, restored, f"state {state}: memory to spare")


def _away(vm: ManagedVm) -> int:
    """Pages of a VM in swap that memvirt may bring back now."""
    guest = vm.guest
    if not isinstance(guest, LiveGuest) or guest.reclaim is None:
        return 0
    return min(vm.room, guest.evictor.out or guest.evictor.pretended, _STEP_PAGES)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Make the two known by name inside the block, in which a VMkernel is made.

    Not for longer: other hosts' VMs have nothing these could act upon.
    """
    RECLAIM.register(NO_BALLOON, lambda options: PageWithoutBalloon())
    RECLAIM.register(BRING_BACK, lambda options: BringBack())
    try:
        yield
    finally:
        RECLAIM.unregister(NO_BALLOON)
        RECLAIM.unregister(BRING_BACK)


def options_of(plan: HostPlan) -> MemoryOptions:
    """The host's options, with the mechanisms of live VMs and without those they cannot have."""
    reclaim = [name for name in plan.options.reclaim if name not in (NO_BALLOON, BRING_BACK)]
    if not plan.balloon:
        reclaim = [name for name in reclaim if name != "balloon"]
    if not plan.evicts:
        reclaim = [name for name in reclaim if name != "swap"]
    elif "swap" in reclaim:
        reclaim += [NO_BALLOON, BRING_BACK]
    return plan.options.model_copy(update={"reclaim": tuple(reclaim), "large_pages": False})
