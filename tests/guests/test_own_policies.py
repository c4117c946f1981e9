# SPDX-License-Identifier: Apache-2.0
"""Policies of somebody else, registered from outside, on a bundled scenario with real guests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from memvirt.address import PpnArray
from memvirt.host.host import Host
from memvirt.host.stores import STORES, StoreRequest
from memvirt.machine.content import Pages
from memvirt.scenario.scenario import ScenarioError, find_scenario, parse_scenario
from memvirt.scenario.schema import scenario_schema
from memvirt.vmkernel.mechanisms import KeepIn
from memvirt.vmkernel.policies import RECLAIM, VICTIMS
from memvirt.vmkernel.protocols import GuestMemory, Place
from memvirt.vmkernel.samples import Sample
from memvirt.vmm.stores.backing import FULL, Slots
from memvirt.vmm.stores.held_pages import HeldPages


class FarMemory(HeldPages):
    """Another machine's memory: up to ``capacity`` pages of a VM, a microsecond away."""

    def __init__(self, request: StoreRequest) -> None:
        super().__init__()
        self.capacity = request.settings.memory // 20
        self.wait_ns = 1000
        self.closed = False
        self._order: dict[int, int] = {}  # slot -> PPN, in the order they came

    def put(self, ppns: PpnArray, contents: Pages) -> Slots:
        slots = np.full(ppns.size, FULL, np.int64)
        room = max(self.capacity - len(self), 0)
        slots[:room] = super().put(ppns[:room], contents[:room])
        taken = zip(slots[:room].tolist(), ppns[:room].tolist(), strict=True)
        self._order |= dict(taken)
        return slots

    def oldest(self, count: int) -> list[tuple[int, int]]:
        return [(ppn, slot) for slot, ppn in list(self._order.items())[:count]]

    def discard(self, slots: Any) -> None:
        slots = list(slots)
        super().discard(slots)
        for slot in slots:
            del self._order[slot]

    def close(self) -> None:
        self.closed = True


class LowestPages:
    """The pages with the lowest numbers: as bad as it sounds, and easy to recognize."""

    def __init__(self) -> None:
        self.chosen: list[int] = []
        self.prepared = 0

    def choose(
        self, guest: GuestMemory, resident: int, count: int, random: np.random.Generator
    ) -> PpnArray:
        assert guest.reclaim is not None
        victims = PpnArray(np.sort(guest.reclaim.reclaimable_pages())[:count])
        self.chosen += victims.tolist()
        return victims

    def prepare(self, guest: GuestMemory, expected: int, random: np.random.Generator) -> None:
        self.prepared += 1


@pytest.fixture
def lowest() -> Iterator[LowestPages]:
    policy = LowestPages()
    RECLAIM.register("far", lambda options: KeepIn(Place("far", spills=True, note="over there")))
    STORES.register("far", FarMemory)
    VICTIMS.register("lowest", lambda options: policy)
    yield policy
    RECLAIM.unregister("far")
    STORES.unregister("far")
    VICTIMS.unregister("lowest")


CHOICE = '[machine.Mem]\nReclaim = ["balloon", "discard", "far", "swap"]\nSwapVictims = "lowest"\n'


def default_scenario(choice: str) -> str:
    text = find_scenario("default").read_text(encoding="utf-8")
    assert text.count("[machine.Mem]\n") == 1
    return text.replace("[machine.Mem]\n", choice)


def test_a_bundled_scenario_with_a_mechanism_and_victims_of_ones_own(lowest: LowestPages) -> None:
    samples: list[Sample] = []
    with Host(parse_scenario(default_scenario(CHOICE), "own"), check_every=8) as host:
        assert host.run(on_sample=samples.append, sample_interval=0.05), [
            (vm.name, vm.outcome, bytes(vm.serial_log[-200:])) for vm in host.vms
        ]
        assert host.violations == []
        counts = host.events.counts
        reasons = {event.reason for event in host.events if event.mechanism == "far"}
    assert counts["far"] > 0
    assert counts["swap"] > 0  # what was full spilled over
    assert counts["compress"] == 0
    assert all(reason.endswith("; over there") for reason in reasons)
    assert lowest.chosen
    assert lowest.prepared
    assert max(sample.host.stored for sample in samples) > 0
    assert max(vm.stored for sample in samples for vm in sample.vms) > 0
    assert max(sample.host.zipped for sample in samples) == 0


def test_a_scenario_names_what_is_registered(lowest: LowestPages) -> None:
    text = default_scenario(CHOICE).replace('"far"', '"fra"')
    line = text.splitlines().index('Reclaim = ["balloon", "discard", "fra", "swap"]') + 1
    with pytest.raises(
        ScenarioError,
        match=rf"own:{line}: \"machine.Mem.Reclaim\": should be 'balloon', .* 'swap' or 'far'",
    ):
        parse_scenario(text, "own")
    with pytest.raises(ScenarioError, match=r"SwapVictims.*should be 'random', 'idle' or 'lowest'"):
        parse_scenario(text.replace('"fra"', '"far"').replace('"lowest"', '"low"'), "own")
    assert "lowest" in str(scenario_schema())
    assert "far" in str(scenario_schema())
