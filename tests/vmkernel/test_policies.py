# SPDX-License-Identifier: Apache-2.0
"""Policies by name: those of others beside our own, unknown names, and what each kind decides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import ValidationError

from memvirt.host.stores import STORES
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.allocation import Claim, SharesAllocation, SizeAllocation
from memvirt.vmkernel.managed import Condition, ManagedVm
from memvirt.vmkernel.mechanisms import ReclaimContext, ReclaimMechanism
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.policies import ALLOCATION, RECLAIM, VICTIMS
from memvirt.vmkernel.registry import Registry, UnknownPolicy
from memvirt.vmkernel.simulation import SimulatedGuest, Simulation
from memvirt.vmm.stores.compression_cache import Codec

MIB = 256


class Trim(ReclaimMechanism):
    """Takes pages by an agent in the guest: ``share`` of what is asked for."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.asked = 0

    def take(self, host: ReclaimContext, vm: ManagedVm, pages: int, reason: str) -> int:
        guest = vm.guest
        assert isinstance(guest, SimulatedGuest)
        count = int(pages * self.share)
        victims = guest.reclaimable_pages()[:count]
        self.asked += pages
        guest.machine.put_back(victims.size)
        guest._set(victims, 0)  # type: ignore[arg-type]
        vm.refresh()
        host.record(vm, "trim", int(victims.size), reason)
        return int(victims.size)


@pytest.fixture
def trim() -> Iterator[None]:
    RECLAIM.register("trim", lambda options: Trim(0.5))
    yield
    RECLAIM.unregister("trim")


def pressed(**knobs: object) -> Simulation:
    """Two VMs that use all their memory, a half more than the machine has; shares 1 to 3."""
    options = {"SamplePeriod": 5, "BalancePeriod": 5, "ShareScanTime": 0, **knobs}
    host = Simulation(128 * MIB, MemoryOptions(**options))  # type: ignore[arg-type]
    for number, shares in enumerate((500, 1500)):
        host.power_on(VmSettings(f"vm{number}", 96 * MIB, shares), active=1.0)
    host.run(20)
    return host


@pytest.mark.usefixtures("trim")
def test_a_mechanism_from_outside_takes_its_turn_in_the_order() -> None:
    first = pressed(Reclaim=["balloon", "trim", "swap"])
    counts = first.kernel.events.counts
    assert counts["trim"] > 0
    assert counts["swap"] > 0
    last = pressed(Reclaim=["swap", "trim"])
    assert last.kernel.events.counts["swap"] > 0
    assert last.kernel.events.counts["trim"] < counts["trim"]


def test_without_a_place_for_them_pages_stay_and_vms_wait() -> None:
    host = pressed(Reclaim=["balloon"])
    assert host.kernel.sample().host.swapped == 0
    assert set(host.kernel.events.counts) & {"swap", "compress", "discard"} == set()
    assert {vm.condition for vm in host.kernel.vms} <= {Condition.BLOCKED, Condition.WAITING}


@pytest.mark.parametrize(("allocation", "ratio"), [("shares", 3), ("size", 1)])
def test_the_allocation_policy_decides_who_has_how_much(allocation: str, ratio: float) -> None:
    poor, rich = (guest.usage().consumed for guest in pressed(Allocation=allocation).guests)
    assert rich / poor == pytest.approx(ratio, rel=0.05)


def claim(**changes: float) -> Claim:
    return Claim(
        **{  # type: ignore[arg-type]
            "shares": 1000, "active": 1.0, "memory": 1000, "reservation": 0, "maximum": 1000,
            "consumed": 800, "demand": 1000, **changes,
        }
    )  # fmt: skip


def test_what_the_allocation_policies_decide() -> None:
    claims = [claim(shares=1000), claim(shares=3000, memory=2000, maximum=2000, demand=2000)]
    np.testing.assert_allclose(SharesAllocation(75).targets(1000, claims), [250, 750])
    np.testing.assert_allclose(SizeAllocation().targets(900, claims), [300, 600])
    idle = [claim(active=0.0), claim()]
    np.testing.assert_allclose(SharesAllocation(75).targets(1000, idle), [200, 800])
    np.testing.assert_allclose(SizeAllocation().revoke(200, idle), [100, 100])
    kept = [claim(reservation=800), claim()]
    np.testing.assert_allclose(SizeAllocation().revoke(200, kept), [0, 200])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"SwapVictims": "oldest"}, "should be 'random' or 'idle'"),
        ({"Allocation": "fair"}, "should be 'shares' or 'size'"),
        ({"Reclaim": ["swop"]}, "should be 'balloon', 'discard', 'compress' or 'swap'"),
        ({"Reclaim": ["swap", "balloon", "swap"]}, "should name 'swap' once"),
        ({"MemZipCodec": "zip"}, "'lz4' or 'zstd'"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(
    knobs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        MemoryOptions(**knobs)  # type: ignore[arg-type]


def test_a_name_that_is_gone_is_refused_when_the_host_is_made() -> None:
    VICTIMS.register("brief", VICTIMS._factories["random"])
    options = MemoryOptions(SwapVictims="brief")
    VICTIMS.unregister("brief")
    with pytest.raises(UnknownPolicy, match="should be 'random' or 'idle'"):
        Simulation(1 << 14, options)


@pytest.mark.parametrize("registry", [RECLAIM, VICTIMS, ALLOCATION, STORES])
def test_a_registry_takes_a_name_once(registry: Registry[object]) -> None:
    name = registry.names()[0]
    with pytest.raises(ValueError, match=f'"{name}" is registered already'):
        registry.register(name, lambda options: object())
    with pytest.raises(ValueError, match="cannot be a name"):
        registry.register("No Name", lambda options: object())
    with pytest.raises(UnknownPolicy, match=name):
        registry.unregister("nothing")


def test_the_codecs_of_the_options_are_those_there_are() -> None:
    for codec in Codec:
        assert MemoryOptions(MemZipCodec=codec.value).mem_zip_codec == codec
