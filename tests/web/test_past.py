# SPDX-License-Identifier: Apache-2.0
"""Time dragged back: what maps to what is that of the moment, and what was not kept is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from memvirt.host.host import Host
from memvirt.observe.address_map import map_address
from memvirt.observe.guest_tables import addresses_of, mapped_runs
from memvirt.observe.view import live_view
from memvirt.scenario.scenario import parse_scenario
from memvirt.vmm.pmap import PageState
from memvirt.web import host_page, past
from memvirt.web.host_source import HostSource
from memvirt.web.source import NothingToSay
from tests.small_guest import small_guest

from .conftest import Opened, Served
from .test_page import ARROWS, select, vm_of


def _later(opened: Opened, served: Served, rounds: int = 40) -> None:
    then = served.round()
    served.ask(lambda: served.source.control("step", rounds))
    opened.until("n => memvirt.store.live.header.round >= n", then + rounds)
    opened.settled(served)


def test_a_page_of_a_moment_that_is_over(opened: Opened, served: Served) -> None:
    """State, frame, addresses and arrows are those of then, of a page that was not selected."""
    vm = vm_of(served, "nested")
    opened.js("vm => memvirt.store.choose(vm)", vm.vm_id)
    opened.until("vm => memvirt.store.runs.vm === vm", vm.vm_id)
    number = opened.js("() => memvirt.store.live.header.number")
    then = served.round()

    def known() -> dict[str, Any]:
        ppn = int(np.flatnonzero(vm.vmm.pmap.state == PageState.PRIVATE)[-3])
        runs, _ = mapped_runs(live_view(vm))
        return {
            "ppn": ppn,
            "mpn": int(vm.vmm.pmap.frame[ppn]),
            "addresses": [hex(gva) for gva in addresses_of(runs, ppn)],
        }

    before = served.ask(known)
    assert before["addresses"]
    served.ask(lambda: vm.vmm.unmap([before["ppn"]]))
    _later(opened, served, 5)
    opened.js("n => memvirt.look(n)", number)
    opened.until("memvirt.store.past !== null")
    opened.until("memvirt.store.runs.past !== undefined")
    select(opened, {"kind": "ppn", "vm": vm.vm_id, "ppn": before["ppn"]})
    page = opened.js("() => memvirt.store.answers.page")
    assert {name: page[name] for name in before} == before
    assert page["state"] in ("private", "large", "page table")
    physical, machine = f"vm:{vm.vm_id}:{before['ppn']}", f"machine:{before['mpn']}"
    drawn = [tuple(arrow) for arrow in opened.js(ARROWS)]
    assert ("pmap", physical, machine) in drawn
    assert any(kind == "guest" and to == physical for kind, _, to in drawn)
    assert not any(kind == "nested" for kind, *_ in drawn)  # not recorded
    panel = opened.page.locator("#panel")
    expect(panel).to_contain_text("Walk not recorded at that moment")
    opened.page.click("#tab-bytes")
    expect(panel).to_contain_text("are not kept")
    opened.page.click("#tab-life")
    expect(panel).to_contain_text("up to this moment")
    opened.until("memvirt.store.answers.life?.length > 0")
    lived = opened.js("() => memvirt.store.answers.life")
    assert all(change["round"] <= then for change in lived)
    opened.js("() => memvirt.look(null)")
    opened.until("memvirt.store.answers.page?.bytes === undefined")


def test_a_walk_that_was_on_the_screen_is_kept(opened: Opened, served: Served) -> None:
    """Each entry of it, as it was then."""
    vm = vm_of(served, "shadowed")

    def known() -> Any:
        runs, _ = mapped_runs(live_view(vm))
        for run in runs:
            for page in range(0, run.pages, 7):
                found = map_address(live_view(vm), run.gva + (page << 12))  # type: ignore[arg-type]
                if found.mpn is not None and found.second[-1].points_to is not None:
                    return found.as_json()
        raise AssertionError("no page of the VM has a shadow entry")

    wanted = served.ask(known)
    select(opened, {"kind": "gva", "vm": vm.vm_id, "gva": wanted["gva"]})
    number = opened.js("() => memvirt.store.live.header.number")
    assert opened.js("() => memvirt.store.answers.map") == wanted
    served.ask(lambda: vm.vmm.unmap([int(wanted["ppn"], 16)]))
    _later(opened, served, 3)
    opened.js("n => memvirt.look(n)", number)
    opened.until("memvirt.store.past !== null && memvirt.store.answers.map != null")
    shown = opened.js("() => memvirt.store.answers.map")
    same = ("gva", "ppn", "mpn", "guest", "second", "machine_address")
    assert {name: shown[name] for name in same} == {name: wanted[name] for name in same}
    expect(opened.page.locator("#panel")).to_contain_text("when they were looked at")
    opened.js("() => memvirt.look(null)")


def test_a_frame_of_a_moment_that_is_over(opened: Opened, served: Served) -> None:
    """Every page that it backed then, whoever backs what now."""
    twins = [vm_of(served, name) for name in ("shadowed", "nested")]

    def common() -> tuple[int, set[tuple[int, int]]]:
        def pages(mpn: int) -> set[tuple[int, int]]:
            return {
                (vm.vm_id, int(ppn))
                for vm in twins
                for ppn in np.flatnonzero(
                    (vm.vmm.pmap.frame == mpn) & (vm.vmm.pmap.state == PageState.SHARED)
                )
            }

        shared = twins[0].vmm.pmap.frame[twins[0].vmm.pmap.state == PageState.SHARED]
        return min(
            ((int(mpn), pages(int(mpn))) for mpn in shared[-20:]), key=lambda one: len(one[1])
        )

    mpn, pages = served.ask(common)
    number = opened.js("() => memvirt.store.live.header.number")
    served.ask(lambda: twins[0].vmm.unmap([ppn for vm, ppn in pages if vm == twins[0].vm_id]))
    _later(opened, served, 3)
    opened.js("n => memvirt.look(n)", number)
    opened.until("memvirt.store.past !== null")
    select(opened, {"kind": "mpn", "mpn": mpn})
    mappings = opened.js("() => memvirt.store.answers.frame.mappings")
    assert {(one["vm"], one["ppn"]) for one in mappings} == pages
    opened.js("() => memvirt.look(null)")


def test_what_is_kept_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go; an answer that says the same as the one before takes no room."""
    monkeypatch.setattr(past, "_MOST_RUNS", 100)
    monkeypatch.setattr(past, "_MOST_ANSWERS", 50)
    asked = past.Asked()
    for rounds in range(1, 41):
        runs = [[hex(rounds << 12), rounds, 1, 4096, ""]] * 10
        asked.keep_virtual(rounds, {"vm": 1, "runs": runs, "digest": str(rounds)})
    assert asked.virtual(30, 1) is None
    found = asked.virtual(40, 1)
    assert found is not None
    assert (found[0], found[1]["digest"]) == (40, "40")
    for rounds in range(41, 200):
        asked.keep_virtual(rounds, {"vm": 1, "runs": runs, "digest": "40"})
    assert len(asked._virtual) == 50
    assert asked.virtual(199, 1) == (199, found[1])
    assert asked.virtual(199, 2) is None


def test_a_vm_that_has_ended_has_nothing_to_say(tmp_path: Path) -> None:
    """A page may ask between its end and the frame that says so: that is no error."""
    image = tmp_path / "guest"
    image.write_bytes(small_guest("test: mov $0x10, %al\n out %al, $0xF4\n1: jmp 1b\n"))
    scenario = f"""
[machine]
memory = "16M"
[[vm]]
name = "short"
image = "{image}"
memory = "4M"
"""
    with Host(parse_scenario(scenario, "short")) as host:
        source = HostSource(host, title="short")
        answers = host_page.answers(source)
        vm = str(host.vms[0].vm_id)
        assert answers["virtual"]({"vm": vm})["runs"]
        then = source.capture().number
        while host.step():
            pass
        after = source.capture().number
        assert answers["page"]({"vm": vm, "ppn": "0", "at": str(then)})["ppn"] == 0
        with pytest.raises(NothingToSay, match="ended"):
            answers["page"]({"vm": vm, "ppn": "0", "at": str(after)})
        for name, values in (
            ("map", {"vm": vm, "gva": "0"}),
            ("page", {"vm": vm, "ppn": "0"}),
            ("virtual", {"vm": vm}),
            ("frame", {"mpn": "0"}),
            ("about", {"kind": "ppn", "vm": vm, "ppn": "0"}),
        ):
            with pytest.raises(NothingToSay, match="ended"):
                answers[name](values)
