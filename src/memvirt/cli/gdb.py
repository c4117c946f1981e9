# SPDX-License-Identifier: Apache-2.0
"""``memvirt boot --gdb``: where gdb connects, for as long as the VM runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from memvirt.gdb.server import GdbServer, GdbSession
from memvirt.vm.virtual_machine import VirtualMachine

from .interruption import Interruption

_FOREVER = 3600.0


@contextlib.contextmanager
def gdb_session(
    vm: VirtualMachine, place: str | None, interruption: Interruption
) -> Iterator[GdbSession | None]:
    """A session at ``place`` that gdb has come to, or that the user has interrupted before.

    None if there is no place. When the block ends gdb hears of the VM's end. Raises GdbServerError.
    """
    if place is None:
        yield None
        return

    def wait(descriptor: int) -> bool:
        while not interruption.asked:
            if interruption.wait(_FOREVER, descriptor):
                return True
        return False

    with GdbServer(place) as server:
        session = GdbSession(server, vm, wait)
        print(f"memvirt: waiting for gdb: target remote {server.place}", file=sys.stderr)
        session.wait_for_debugger()
        if interruption.asked:
            vm.stop()
        yield session
        if vm.outcome is not None:
            session.finish(vm.outcome)
