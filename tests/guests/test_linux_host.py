# SPDX-License-Identifier: Apache-2.0
"""Four Linux guests on a host that has little more memory than one and a half of them."""

from __future__ import annotations

from pathlib import Path

from memvirt.host.host import Host
from memvirt.scenario.scenario import load_scenario
from memvirt.vmkernel.events import Mechanism
from memvirt.vmkernel.samples import Sample

from .conftest import LinuxGuest

SCENARIO = Path(__file__).parents[2] / "guests" / "linux" / "four-guests.toml"


def test_four_linux_guests_verify_on_384_mib(linux_guest: LinuxGuest) -> None:
    """Kernel text, page cache and zeroes shared; the stock balloon driver, compression and swap."""
    scenario = load_scenario(SCENARIO)
    assert scenario.machine.memory == 384 << 20
    assert [vm.memory for vm in scenario.vm] == [256 << 20] * 4
    assert {vm.paging for vm in scenario.vm} == {"shadow", "nested"}
    most = {"sharing_saved": 0, "balloon": 0, "zipped": 0, "swapped": 0}
    drivers: set[str] = set()

    def look(sample: Sample) -> None:
        for name, before in most.items():
            most[name] = max(before, getattr(sample.host, name))
        drivers.update(vm.name for vm in sample.vms if vm.balloon_driver)

    with Host(scenario) as host:
        assert host.run(on_sample=look, sample_interval=0.1), [
            (vm.name, vm.outcome, bytes(vm.serial_log[-300:])) for vm in host.vms
        ]
        for vm in host.vms:
            assert b"linux-guest: verdict: success" in vm.serial_log
    assert host.machine.free_frames == host.machine.frames
    assert drivers == {vm.name for vm in scenario.vm}
    assert most["sharing_saved"] > (64 << 20) // 4096
    assert min(most.values()) > 0, most
    done = {event.mechanism for event in host.events}
    assert {Mechanism.SHARE, Mechanism.BALLOON, Mechanism.COMPRESS, Mechanism.SWAP} <= done
