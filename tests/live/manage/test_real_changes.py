# SPDX-License-Identifier: Apache-2.0
"""Plugged memory and a migration of a real QEMU, which test_changing_vms.py has played."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memvirt.cli.manage import host_plan
from memvirt.live.discovery import DiscoveredVm
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.scenario.scenario import parse_scenario
from tests.live.conftest import Qemu, start_qemu
from tests.waiting import until

__all__ = ["start_qemu"]
pytestmark = pytest.mark.qemu
HOST = """
[machine]
memory = "1G"
[live]
working_set = "off"
pageout = false
[[vm]]
name = "{}"
memory = "64M"
"""


@pytest.mark.usefixtures("needs_root")
def test_plugged_memory_and_a_migration_as_qemu_tells_of_them(
    start_qemu: Callable[..., Qemu], tmp_path: Path
) -> None:
    qemu = start_qemu(
        f"changing-{os.getpid()}", "-accel", "tcg", "-S", "-m", "64M,slots=2,maxmem=256M",
        "-device", "virtio-balloon-pci",
    )  # fmt: skip
    seconds = 0.0

    def found() -> list[DiscoveredVm]:
        return [qemu.discovered()]

    plan = host_plan(parse_scenario(HOST.format(qemu.name), "host.toml"))
    with Ledger(tmp_path) as ledger:
        manager = Manager(plan, ledger, clock=lambda: seconds, found=found)

        def told(text: str) -> bool:
            nonlocal seconds
            seconds += 1
            manager.step()
            return any(text in event.reason for event in manager.kernel.events)

        def ask(command: str, **arguments: object) -> None:
            with qemu.open() as vm:
                vm.ask().execute(command, arguments)

        try:
            assert told("levers: balloon")
            assert manager.guests[qemu.name].balloon is not None
            assert not told("plugged")
            ask("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 64 << 20})
            ask("device_add", driver="pc-dimm", id="dimm", memdev="more")
            assert told("memory was plugged in or out (16384 to 32768 pages)")
            assert manager.guests[qemu.name].balloon is None
            ask("migrate", uri="exec:cat >/dev/null")
            until(lambda: told("it has migrated to another host"), "QEMU has sent it all")
        finally:
            assert manager.close()
        assert ledger.record.empty
