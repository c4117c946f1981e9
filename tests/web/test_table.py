# SPDX-License-Identifier: Apache-2.0
"""esxtop's table in the page: sorted by any column, with the columns that somebody chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from memvirt.vmkernel.samples import VmMemory

from .conftest import Opened, Served

_ROWS = "() => [...document.querySelectorAll('#vms tbody tr')].map(r => Number(r.dataset.vm))"
_HEADS = "() => [...document.querySelectorAll('#vms th')].map(cell => cell.textContent)"
_NAMES = "() => [...document.querySelectorAll('#vms td:first-child')].map(c => c.textContent)"


def _column(opened: Opened, name: str) -> Any:
    return opened.page.locator("#vms th", has_text=name).first


@pytest.mark.parametrize(
    ("column", "value"),
    [("CNSM", lambda vm: vm.consumed), ("SHRD", lambda vm: vm.shared)],
)
def test_sorting_by_numbers(
    opened: Opened, served: Served, column: str, value: Callable[[VmMemory], float]
) -> None:
    """The greatest first, then the least; equal ones stay in the scenario's order."""
    vms = served.ask(served.host.sample).vms
    down = [vm.vm_id for vm in sorted(vms, key=value, reverse=True)]
    up = [vm.vm_id for vm in sorted(vms, key=value)]
    assert len({value(vm) for vm in vms}) > 1
    assert opened.js(_ROWS) == [vm.vm_id for vm in vms]
    head = _column(opened, column)
    head.click()
    assert opened.js(_ROWS) == down
    expect(head).to_have_attribute("aria-sort", "descending")
    head.focus()
    opened.page.keyboard.press("Enter")
    assert opened.js(_ROWS) == up
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert opened.page.locator("#vms th[aria-sort]").count() == 1
    # A new round keeps the order by that column.
    served.ask(lambda: served.source.control("step", 1))
    opened.settled(served)
    vms = served.ask(served.host.sample).vms
    assert opened.js(_ROWS) == [vm.vm_id for vm in sorted(vms, key=value)]


def test_sorting_by_names(opened: Opened, served: Served) -> None:
    _column(opened, "NAME").click()
    _column(opened, "NAME").click()
    names = opened.js(_NAMES)
    assert names == opened.js("names => names.toSorted((a, b) => a.localeCompare(b))", names)
    assert {vm.name for vm in served.host.vms} == set(names)


def test_choosing_columns(opened: Opened, served: Served) -> None:
    """They are shown in the table's own order, with the host's figures, and found again."""
    before = opened.js(_HEADS)
    opened.page.click("#columns")
    opened.page.locator("#column-ZERO").check()
    opened.page.locator("#column-MEMSZ").uncheck()
    expect(opened.page.locator("#column-NAME")).to_be_disabled()
    opened.page.get_by_role("button", name="close").click()
    after = opened.js(_HEADS)
    assert set(after) == set(before) - {"MEMSZ"} | {"ZERO"}
    every = opened.js("() => memvirt.store.hello.columns.map(column => column[0])")
    assert after == [name for name in every if name in after]
    cells = opened.js(
        "n => [...document.querySelectorAll('#vms tbody tr')].map(r => r.cells[n].textContent)",
        after.index("ZERO"),
    )
    zero = [vm.zero / 256 for vm in served.ask(served.host.sample).vms]
    assert [float(cell) for cell in cells] == pytest.approx(zero, abs=0.06)
    opened.page.reload()
    opened.until("globalThis.memvirt?.store?.live.header != null")
    opened.until("document.querySelectorAll('#vms th').length > 0")
    assert opened.js(_HEADS) == after
