# SPDX-License-Identifier: Apache-2.0
"""Whether a VM is on its way to another host, or from one.

Source: QEMU's QAPI schema, ``MigrationStatus`` of ``query-migrate`` (qapi/migration.json) and
``RunState`` of ``query-status`` (qapi/run-state.json).
"""

from __future__ import annotations

from .qmp import Monitor

MIGRATED = "postmigrate"  # the run state of a VM that goes on elsewhere
_INCOMING = "inmigrate"
UNDER_WAY = frozenset((
    "setup", "active", "device", "pre-switchover", "postcopy-active", "postcopy-paused",
    "postcopy-recover-setup", "postcopy-recover", "wait-unplug", "colo", "cancelling",
))  # fmt: skip


def outgoing(monitor: Monitor) -> str:
    """The status of a migration that is under way from here, or "". Raises MonitorError."""
    status = str(monitor.execute("query-migrate").get("status", ""))
    return status if status in UNDER_WAY else ""


def why_on_the_move(monitor: Monitor, run_state: str) -> str:
    """Why a VM's memory is not to be managed now because of a migration, or "".

    Raises MonitorError.
    """
    if run_state == MIGRATED:
        return "it has migrated to another host, its balloon with it"
    if run_state == _INCOMING:
        return "it waits for its memory from another host (an incoming migration)"
    status = outgoing(monitor)
    return f"it is being migrated to another host ({status})" if status else ""
