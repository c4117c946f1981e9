# SPDX-License-Identifier: Apache-2.0
"""The page by keyboard alone, without WebGL2, dragged back in time, saved as a file."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from playwright.sync_api import Browser, expect

from memvirt.address import GuestVirtualAddress
from memvirt.observe.address_map import map_address
from memvirt.observe.guest_tables import mapped_runs
from memvirt.observe.page_classes import GuestClass
from memvirt.observe.view import live_view
from memvirt.vmm.pmap import PageState

from .conftest import CHROMIUM, Opened, Served
from .test_page import ARROWS, classes_in, select, vm_of

_SVG = "{http://www.w3.org/2000/svg}"


def test_runs_of_mapped_pages_are_what_addresses_map_to(served: Served) -> None:
    """All that the tables map, read by whole arrays, against one walk an address."""
    for name in ("shadowed", "nested"):
        view = served.ask(lambda name=name: live_view(vm_of(served, name)))

        def compare(view: object = view) -> int:
            runs, complete = mapped_runs(view)  # type: ignore[arg-type]
            assert complete
            for run in runs:
                for page in {0, run.pages // 2, run.pages - 1}:
                    gva = GuestVirtualAddress(run.gva + (page << 12))
                    found = map_address(view, gva)  # type: ignore[arg-type]
                    assert found.ppn == run.ppn + page, hex(gva)
            for one, after in itertools.pairwise(runs):
                assert one.end <= after.gva
                if one.end < after.gva:
                    end = GuestVirtualAddress(one.end)
                    assert map_address(view, end).ppn is None  # type: ignore[arg-type]
            return len(runs)

        served.ask(lambda: served.source.control("pause"))
        assert served.ask(compare) > 0


def test_everything_by_keyboard(opened: Opened, served: Served) -> None:
    vm, keyboard = vm_of(served, "shadowed"), opened.page.keyboard
    assert opened.js("() => memvirt.store.vm") == vm.vm_id
    opened.until("memvirt.store.selection !== null")  # the example that is there at once
    keyboard.press("Escape")
    for ppn in range(2):
        keyboard.press("ArrowRight" if ppn else "g")
        opened.until("p => memvirt.store.answers.page?.ppn === p", ppn)
    resident = served.ask(lambda: int(np.flatnonzero(vm.vmm.pmap.state == PageState.PRIVATE)[-1]))
    keyboard.press("/")
    keyboard.type(f"ppn {resident}")
    keyboard.press("Enter")
    opened.until("p => memvirt.store.answers.page?.ppn === p", resident)
    keyboard.press("Escape")  # out of the field
    keyboard.press("m")
    mpn = served.ask(lambda: int(vm.vmm.pmap.frame[resident]))
    opened.until("n => memvirt.store.answers.frame?.mpn === n", mpn)
    keyboard.press("g")
    opened.until("p => memvirt.store.answers.page?.ppn === p", resident)
    keyboard.press("ArrowDown")
    assert opened.js("() => memvirt.store.vm") == vm_of(served, "nested").vm_id
    tabs = ("walk", "life", "bytes", "console", "screen", "decisions")
    for key, tab in zip("123456", tabs, strict=True):
        keyboard.press(key)
        expect(opened.page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
    for key, selected in (("c", "owner"), ("c", "activity"), ("c", "salt"), ("c", "state")):
        keyboard.press(key)
        assert opened.js("() => memvirt.store.mode") == selected
    keyboard.press("e")
    assert opened.js("() => document.activeElement.id") == "set-shares"
    keyboard.press("Escape")
    keyboard.press("o")
    opened.page.locator("#column-ZERO").check()
    keyboard.press("Escape")
    expect(opened.page.locator("#vms thead")).to_contain_text("ZERO")
    assert "ZERO" in opened.page.url
    expect(opened.page.locator("#choice")).to_be_hidden()
    keyboard.press("Escape")
    opened.until("memvirt.store.selection === null")
    before = opened.js("() => memvirt.store.live.header.round")
    keyboard.press(".")
    opened.until("n => memvirt.store.live.header.round === n", before + 1)


def test_what_is_selected_is_asked_again(opened: Opened, served: Served) -> None:
    """A page that is taken while it is selected loses its arrow, without a click."""
    vm = vm_of(served, "shadowed")
    ppn = served.ask(lambda: int(np.flatnonzero(vm.vmm.pmap.state == PageState.PRIVATE)[-1]))
    select(opened, {"kind": "ppn", "vm": vm.vm_id, "ppn": ppn})
    assert any(kind == "pmap" for kind, *_ in opened.js(ARROWS))
    served.ask(lambda: vm.vmm.unmap([ppn]))
    served.ask(lambda: setattr(served.source, "_dirty", True))
    opened.until("() => memvirt.store.answers.page?.mpn === null")
    assert opened.js(ARROWS) == [] or all(kind == "guest" for kind, *_ in opened.js(ARROWS))
    opened.page.click("#tab-life")
    life = opened.page.locator("#panel .ladder li b")
    expect(life.first).to_be_visible()
    kept = served.ask(vm.vmm.pmap.state_of(ppn).name.lower)
    expect(life.last).to_have_text(kept)


def test_dragging_the_time_line(opened: Opened, served: Served) -> None:
    for _ in range(3):
        opened.page.click("#step")
        opened.settled(served)
    box = opened.page.locator("#timeline").bounding_box()
    assert box is not None
    mouse = opened.page.mouse
    mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 30)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
    opened.until("memvirt.store.past !== null")
    past = opened.js("() => memvirt.store.header.number")
    assert past < opened.js("() => memvirt.store.live.header.number")
    mouse.move(box["x"] + box["width"] - 1, box["y"] + 30)
    opened.until("memvirt.store.past === null")
    mouse.up()


def test_saved_files_have_the_arrows(opened: Opened, served: Served, tmp_path: Path) -> None:
    vm = vm_of(served, "nested")
    ppn = served.ask(lambda: int(np.flatnonzero(vm.vmm.pmap.state == PageState.PRIVATE)[0]))
    select(opened, {"kind": "ppn", "vm": vm.vm_id, "ppn": ppn})
    opened.until("vm => memvirt.store.runs.vm === vm", vm.vm_id)
    drawn = len(opened.js(ARROWS))
    assert drawn
    with opened.page.expect_download() as svg:
        opened.page.click("#save-svg")
    svg.value.save_as(tmp_path / "page.svg")
    root = ElementTree.parse(tmp_path / "page.svg").getroot()
    paths = [path for path in root.iter(f"{_SVG}path") if "arrow" in path.get("class", "").split()]
    assert len(paths) == drawn
    assert all(path.get("stroke", "none") != "none" for path in paths)
    assert root.find(f"{_SVG}image") is not None
    with opened.page.expect_download() as png:
        opened.page.click("#save-png")
    png.value.save_as(tmp_path / "page.png")
    content = (tmp_path / "page.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    overlay = opened.js("() => [overlay.clientWidth, overlay.clientHeight]")
    assert (width, height) == (overlay[0] * 2, overlay[1] * 2)


def test_without_webgl_a_plain_canvas_draws_the_same(served: Served, browser: Browser) -> None:
    plain = browser.browser_type.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-3d-apis"]
    )
    try:
        opened = Opened(plain.new_page(viewport={"width": 1280, "height": 720}))
        opened.page.goto(served.server.url)
        opened.until("globalThis.memvirt?.store.live.header != null")
        opened.settled(served)
        assert opened.js("() => document.createElement('canvas').getContext('webgl2')") is None
        expect(opened.page.locator("#plain")).to_be_visible()
        vm = vm_of(served, "shadowed")
        classes = classes_in(opened, f"vm:{vm.vm_id}")
        for number in np.unique(classes).tolist():
            page = int(np.flatnonzero(classes == number)[0])
            drawn, wanted = opened.js(
                """async ([vm, page, number]) => {
                  const { guestColours } = await import('./static/colors.js');
                  const lane = memvirt.pagemap.lanes.physical.get(vm);
                  lane.show(page, 16);
                  const canvas = memvirt.pagemap.image(), box = lane.box(page);
                  const ratio = devicePixelRatio;
                  const [x, y] = [(box.x + box.w / 2) * ratio, (box.y + box.h / 2) * ratio];
                  const [r, g, b] = canvas.getContext('2d').getImageData(x, y, 1, 1).data;
                  const hex = [r, g, b].map(v => v.toString(16).padStart(2, '0')).join('');
                  return ['#' + hex, guestColours()[number]];
                }""",
                [vm.vm_id, page, number],
            )
            assert drawn == wanted, GuestClass(number).name
    finally:
        plain.close()
