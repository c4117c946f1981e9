# SPDX-License-Identifier: Apache-2.0
"""State low: a VM above its target is stopped until there is memory, as ESXi does."""

from __future__ import annotations

from memvirt.live.errors import CommandError
from memvirt.vmkernel.managed import Condition, ManagedVm

from .guest import LiveGuest
from .ledger import Ledger


def stop_or_continue(
    guest: LiveGuest, managed: ManagedVm, ledger: Ledger, *, allowed: bool
) -> None:
    """Stop ``guest`` if the VMkernel has blocked it and that is ``allowed``; let it go on later.

    Only what was stopped here is continued, and only if nobody else has done so. Raises
    MonitorError; what was meant is on record before, and is tried again.
    """
    blocked = managed.condition is Condition.BLOCKED
    record = ledger.find(guest.vm_id, guest.started)
    stopped = record is not None and record.stopped
    if blocked and not stopped and allowed and guest.run_state == "running":
        record = ledger.vm(guest.vm_id, guest.started)
        record.name, record.stopped = guest.name, True
        ledger.save()
        try:
            guest.execute("stop")
        except CommandError:
            record.stopped = False  # refused: it runs on
            ledger.save()
            raise
    elif record is not None and stopped and not blocked and guest.run_state != "unknown":
        if guest.run_state == "paused":
            guest.execute("cont")
        record.stopped = False
        ledger.save()
