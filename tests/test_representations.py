# SPDX-License-Identifier: Apache-2.0
"""What people hold in their hands says what it is, in one line and as a table in notebooks."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from memvirt import EndReason, Machine, Outcome, VirtualMachine
from memvirt.host.host import Host
from memvirt.notebook import html_table, one_line
from memvirt.observe.address_map import map_address
from memvirt.observe.snapshot import load_snapshot, save_snapshot
from memvirt.observe.view import live_view
from memvirt.plan.answer import HostAnswer, PlanAnswer
from memvirt.plan.content.analysis import Analysis, Savings, VmContent
from memvirt.scenario.scenario import Scenario

from .observe.vms import four_level_vm

HOSTILE = 'a<script>alert(1)</script>\x1b[2J"&\n'


class Table(HTMLParser):
    """Cells of a table by row, and every tag there is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.caption = ""
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self._in = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._in == "caption":
            self.caption += data


TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_text_of_guests_is_text_in_a_table() -> None:
    table = Table(html_table(HOSTILE, [HOSTILE], [[HOSTILE], [None], [5]]))
    assert table.tags == TAGS
    assert table.rows == [['a<script>alert(1)</script>?[2J"&?']] * 2 + [[""], ["5"]]
    assert one_line("x" * 300) == "x" * 197 + "..."


def test_a_machine_and_a_vm() -> None:
    machine = Machine("64M")
    with VirtualMachine(machine, memory="16M", paging="shadow", name=HOSTILE) as vm:
        assert repr(machine).startswith("<Machine: 64.0 MiB in 16384 frames, 63.")
        assert repr(vm).startswith("<VirtualMachine 'a<script>")
        assert repr(vm).endswith(": 16.0 MiB, shadow paging, on>")
        assert "\n" not in repr(vm)
        assert "\x1b" not in repr(vm)
    assert repr(vm).endswith("powered off>")
    assert repr(machine) == "<Machine: 64.0 MiB in 16384 frames, 64.0 MiB free>"


def test_an_outcome() -> None:
    outcome = Outcome(EndReason.PANIC, None, HOSTILE, 1.5, 0.25)
    assert repr(outcome).startswith("<Outcome PANIC: the guest's kernel panicked (a<script>")
    assert repr(outcome).endswith("; 1.500 s of virtual time, 0.250 s of the host>")
    assert "\n" not in repr(outcome)


def test_maps_and_snapshots(tmp_path: Path) -> None:
    vm = four_level_vm(Machine("64M"))
    found = map_address(live_view(vm), 5)
    assert repr(found).startswith("<AddressMap of ")
    assert f"gVA 0x5, gPA {found.gpa:#x}, MPN {found.mpn:#x}, 4 + " in repr(found)
    table = Table(found._repr_html_())
    assert table.tags == TAGS
    assert len(table.rows) == 1 + len(found.guest) + len(found.second)
    assert [row[2] for row in table.rows[1:5]] == [f"{step.address:#x}" for step in found.guest]

    save_snapshot(vm, tmp_path / "vm")
    for view in (live_view(vm), load_snapshot(tmp_path / "vm")):
        assert repr(view).endswith("16.0 MiB, nested paging>")
        rows = Table(view._repr_html_()).rows[1:]
        assert sum(int(row[1]) for row in rows) == view.pages
        assert rows[1] == ["private", str(int((view.state == 1).sum()))]


def test_a_host_and_its_samples() -> None:
    scenario = Scenario.model_validate(
        {
            "machine": {"memory": "64M"},
            "vm": [{"name": "first", "memory": "16M"}],
        }
    )
    with Host(scenario) as host:
        assert repr(host).startswith("<Host: 64.0 MiB of machine memory, ")
        assert repr(host).endswith(" free, 1 VMs started of 1, 0 rounds>")
        sample = host.kernel.sample()
        assert repr(sample).startswith("<Sample at 0.000 s: high, ")
        rows = Table(host._repr_html_()).rows
        assert rows[0][:3] == ["VM", "condition", "memory (MiB)"]
        assert rows[1][:3] == ["first", "running", "16.0"]


def test_plans_and_analyses() -> None:
    host = HostAnswer(
        HOSTILE, 1024.0, 20.0, 3, 0.5, ("soft", "low"), (1.0, 2.0), (3.0, 4.0), "", "why", None, {}
    )
    plan = PlanAnswer(
        "q", "does not fit", 0.5, (host,), (), {}, None, None, {}, 8, 1, 0.0, 60.0, 5, ()
    )
    assert repr(plan) == ("<PlanAnswer: does not fit; 0 VMs on 1 hosts, fits in 50% of 8 draws>")
    table = Table(plan._repr_html_())
    assert table.tags == TAGS
    assert table.rows[1] == [one_line(HOSTILE), "3", "1024", "50%", "soft to low", "why"]

    vm = VmContent(HOSTILE, "/p", "raw", "", 100, {"zero": 10})
    analysis = Analysis((vm,), "all", 100, {"zero": 10}, Savings(10, 0, 0, 10.0), (), 0.0, 90, 0.0)
    assert repr(analysis) == "<Analysis of 1 dumps: 10 of 100 pages saved>"
    assert Table(analysis._repr_html_()).rows[1] == [one_line(HOSTILE), "100", "10"]
