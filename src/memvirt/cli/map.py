# SPDX-License-Identifier: Apache-2.0
"""``memvirt map`` on a snapshot, or on a VM booted for it."""

from __future__ import annotations

import json

from memvirt.address import GuestVirtualAddress
from memvirt.observe.address_map import map_address, render
from memvirt.observe.snapshot import load_snapshot
from memvirt.observe.view import VmView, live_view

from .boot import BootOptions, make_vm
from .errors import UsageError
from .ready import make_ready

_LONGEST_QUANTUM_NS = 10_000_000


def snapshot_view(path: str) -> VmView:
    """The VM of a snapshot. Raises SnapshotError."""
    return load_snapshot(path)


def booted_view(options: BootOptions, run_for: float) -> VmView:
    """The VM of ``options`` after ``run_for`` virtual seconds, or at its end."""
    make_ready()
    vm = make_vm(options, None)
    end_ns = int(run_for * 1e9)
    while vm.outcome is None and vm.virtual_ns < end_ns:
        vm.run_quantum(min(_LONGEST_QUANTUM_NS, end_ns - vm.virtual_ns + 1))
    return live_view(vm)


def print_map(view: VmView, address: str, as_json: bool) -> None:
    """Print every step from the guest virtual ``address`` to its page. Raises UsageError."""
    try:
        gva = int(address, 0)
    except ValueError:
        raise UsageError(f"{address} is no address; write for instance 0x100000") from None
    try:
        result = map_address(view, GuestVirtualAddress(gva))
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(json.dumps(result.as_json(), indent=2) if as_json else render(result))
