# SPDX-License-Identifier: Apache-2.0
"""The page in Chromium: what it shows is what the host says."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from memvirt.observe.address_map import map_address
from memvirt.observe.page_classes import GuestClass, host_pages
from memvirt.observe.view import live_view
from memvirt.vmkernel.events import Mechanism
from memvirt.vmm.pmap import PageState
from memvirt.web.wire import parts_of

from .conftest import HOSTILE, SCREENSHOTS, Opened, Served

ARROWS = (
    "() => [...document.querySelectorAll('#overlay path.arrow')]"
    ".map(a => [a.classList[1], a.dataset.from, a.dataset.to])"
)


def classes_in(opened: Opened, part: str) -> np.ndarray[Any, Any]:
    encoded = opened.js("part => btoa(String.fromCharCode(...memvirt.store.parts.get(part)))", part)
    return np.frombuffer(base64.b64decode(encoded), np.uint8)


def vm_of(served: Served, name: str) -> Any:
    return next(vm for vm in served.host.vms if vm.name == name)


def arrows(opened: Opened) -> set[tuple[str, ...]]:
    return {tuple(arrow) for arrow in opened.js(ARROWS)}


def select(opened: Opened, selection: dict[str, Any]) -> None:
    opened.js("s => memvirt.select(s)", selection)
    opened.until("Object.keys(memvirt.store.answers).length > 0")


def test_states_equal_those_of_the_python_api(opened: Opened, served: Served) -> None:
    served.ask(lambda: served.source.control("step", 3))
    opened.settled(served)
    wanted = served.ask(lambda: parts_of(host_pages(served.host.machine, served.host.vms)))
    assert len(wanted) == 5
    for name, classes in wanted.items():
        np.testing.assert_array_equal(classes_in(opened, name), classes, err_msg=name)
    rows = opened.js("() => memvirt.store.vms.map(vm => [vm.name, vm.consumed])")
    sample = served.ask(served.host.sample)
    assert rows == [[vm.name, pytest.approx(vm.consumed)] for vm in sample.vms]


def test_pixels_have_the_colours_of_the_states(opened: Opened, served: Served) -> None:
    """Of every class there is in one VM, one page: the colour that is drawn there."""
    vm = vm_of(served, "shadowed")
    part = f"vm:{vm.vm_id}"
    classes = classes_in(opened, part)
    assert opened.js("() => document.createElement('canvas').getContext('webgl2') !== null")
    for number in np.unique(classes).tolist():
        page = int(np.flatnonzero(classes == number)[0])
        wanted = opened.js(
            """async number => {
              const { guestColours } = await import('./static/colors.js');
              return guestColours()[number];
            }""",
            number,
        )
        drawn = opened.drawn(vm.vm_id, page)
        assert drawn == wanted, GuestClass(number).name


@pytest.mark.parametrize("name", ["shadowed", "nested"])
def test_arrows_are_those_of_map(opened: Opened, served: Served, name: str) -> None:
    vm = vm_of(served, name)
    runs = opened.js("vm => { memvirt.store.choose(vm); }", vm.vm_id)
    opened.until("memvirt.store.runs.runs.length > 0")
    runs = opened.js("() => memvirt.store.runs.runs")
    found = 0
    index = 0
    for start, _, pages, _, _ in runs:
        for page in range(0, pages, max(pages // 4, 1)):
            gva = int(start, 16) + (page << 12)
            wanted = served.ask(lambda gva=gva: map_address(live_view(vm), gva))
            select(opened, {"kind": "gva", "vm": vm.vm_id, "gva": hex(gva)})
            if wanted.state != "private":
                continue
            here, there = f"virtual:{index + page}", f"machine:{wanted.mpn}"
            physical = f"vm:{vm.vm_id}:{wanted.ppn}"
            expected = {("guest", here, physical), ("pmap", physical, there)}
            if wanted.second and wanted.second[-1].points_to is not None:
                start_of = here if name == "shadowed" else physical
                kind = "shadow" if name == "shadowed" else "nested"
                expected.add((kind, start_of, there))
                found += 1
            assert arrows(opened) == expected
        index += pages
    assert found > 0
    ladder = opened.page.locator("#panel .ladder li")
    assert ladder.count() >= 3


def test_a_shared_frame_lights_every_vm_that_maps_it(opened: Opened, served: Served) -> None:
    twins = [vm_of(served, name) for name in ("shadowed", "nested")]

    def common() -> tuple[int, set[tuple[int, int]]]:
        pmaps = {vm.vm_id: vm.vmm.pmap for vm in twins}
        frames = [set(p.frame[p.state == PageState.SHARED].tolist()) for p in pmaps.values()]
        for mpn in sorted(frames[0] & frames[1]):
            pages = {
                (vm_id, int(ppn))
                for vm_id, p in pmaps.items()
                for ppn in np.flatnonzero((p.state == PageState.SHARED) & (p.frame == mpn))
            }
            if len(pages) < 20:
                return mpn, pages
        raise AssertionError("the twins share nothing")

    mpn, pages = served.ask(common)
    select(opened, {"kind": "mpn", "mpn": mpn})
    drawn = {arrow for arrow in arrows(opened) if arrow[0] == "pmap"}
    assert drawn == {("pmap", f"vm:{vm}:{ppn}", f"machine:{mpn}") for vm, ppn in pages}
    assert {vm for vm, _ in pages} == {vm.vm_id for vm in twins}
    panel = opened.page.locator("#panel")
    expect(panel).to_contain_text(f"backs {len(pages)} pages")
    expect(panel).to_contain_text("shadowed")
    expect(panel).to_contain_text("nested")


def test_dragging_back_shows_what_was(opened: Opened, served: Served) -> None:
    number = opened.js("() => memvirt.store.live.header.number")
    before = served.ask(lambda: parts_of(host_pages(served.host.machine, served.host.vms)))
    then = served.round()
    served.ask(lambda: served.source.control("step", 40))
    opened.until("n => memvirt.store.live.header.round >= n", then + 40)
    now = opened.settled(served)
    opened.js("n => memvirt.look(n)", number)
    opened.until("memvirt.store.past !== null")
    for name, classes in before.items():
        np.testing.assert_array_equal(classes_in(opened, name), classes, err_msg=name)
    expect(opened.page.locator("#figures")).to_contain_text(f"round {then}")
    expect(opened.page.locator("#figures")).to_contain_text("looking back")
    opened.page.keyboard.press("Home")
    opened.until("memvirt.store.past === null")
    expect(opened.page.locator("#figures")).to_contain_text(f"round {now}")


def test_the_series_may_be_there_before_the_first_frame(opened: Opened) -> None:
    """It is asked for as soon as the page is greeted; errors of the page are looked for behind."""
    opened.until("memvirt.store.series.length > 1")
    opened.js(
        """() => new Promise(done => {
          const { store } = memvirt, header = store.live.header;
          store.live.header = null;
          store.changed('vm');
          const back = () => { store.live.header = header; done(); };
          requestAnimationFrame(() => requestAnimationFrame(back));
        })"""
    )


def test_pause_one_round_and_run(opened: Opened, served: Served) -> None:
    first = served.round()
    opened.page.click("#step")
    opened.until("n => memvirt.store.live.header.round === n", first + 1)
    assert served.round() == first + 1
    opened.js("() => document.activeElement.blur()")  # space presses a button that has the focus
    opened.page.keyboard.press(" ")
    opened.until("n => memvirt.store.live.header.round > n", first + 5)
    opened.page.click("#play")
    last = opened.settled(served)
    assert served.round() == last


def test_a_limit_is_in_force_and_recorded(opened: Opened, served: Served) -> None:
    vm = vm_of(served, HOSTILE)
    opened.page.locator(f'tr[data-vm="{vm.vm_id}"]').click()
    box = opened.page.locator("#set-limit")
    box.fill("6")
    box.press("Enter")
    opened.until(
        "id => memvirt.store.vms.find(vm => vm.vm_id === id).entitled_max === 1536", vm.vm_id
    )
    served.ask(lambda: served.source.control("step", 60))
    opened.until("memvirt.store.live.header.round > 0")
    opened.settled(served)
    row = next(one for one in served.ask(served.host.sample).vms if one.vm_id == vm.vm_id)
    assert row.entitled_max == 6 * 256
    assert row.consumed <= 6 * 256
    events = [e for e in served.ask(lambda: list(served.host.events)) if e.vm == HOSTILE]
    reasons = [e.reason for e in events if e.mechanism == Mechanism.SETTINGS]
    assert any("browser" in reason for reason in reasons)
    box.fill("rubbish")
    box.press("Enter")
    expect(opened.page.locator("#notice")).to_contain_text("limit")
    opened.said[:] = [said for said in opened.said if "400" not in said]


def test_names_and_consoles_are_text(opened: Opened, served: Served) -> None:
    vm = vm_of(served, HOSTILE)
    served.ask(lambda: vm.serial_log.extend(b"<script>document.title='taken'</script>\r\n"))
    served.ask(lambda: served.source.control("step", 1))
    opened.settled(served)
    opened.page.locator(f'tr[data-vm="{vm.vm_id}"]').click()
    opened.page.click("#tab-console")
    expect(opened.page.locator("#console")).to_contain_text("<script>document.title")
    expect(opened.page.locator("#vms")).to_contain_text(HOSTILE)
    assert opened.js("() => document.querySelectorAll('img, #panel script').length") == 0
    assert opened.page.title() == "memvirt: test"


def test_salts_tell_who_may_share(opened: Opened) -> None:
    colours = opened.js(
        """async () => {
          const { vmColour } = await import('./static/colors.js');
          document.getElementById('mode').value = 'salt';
          document.getElementById('mode').dispatchEvent(new Event('change'));
          const { ownerColours } = memvirt.pagemap;
          return ownerColours().slice(1).map(c => c.join());
        }"""
    )
    assert colours[0] == colours[1] != colours[2]
    assert "colour=salt" in opened.page.url


def test_the_address_bar_finds_the_page_again(opened: Opened, served: Served) -> None:
    vm = vm_of(served, "nested")
    opened.page.locator(f'tr[data-vm="{vm.vm_id}"]').click()
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("ppn 0x110")
    opened.page.keyboard.press("Enter")
    opened.until("memvirt.store.answers.page?.ppn === 0x110")
    assert f"ppn={0x110}" in opened.page.url
    opened.page.click("#tab-bytes")
    wanted = served.ask(lambda: live_view(vm).read_page(0x110))
    shown = opened.page.locator("pre.bytes").inner_text()
    assert " ".join(f"{byte:02x}" for byte in wanted[:16]) in shown
    opened.page.reload()
    opened.until("globalThis.memvirt?.store?.answers.page?.ppn === 0x110")


@pytest.mark.parametrize("paging", ["shadow", "nested"])
def test_the_lesson_is_a_real_vmm(opened: Opened, paging: str) -> None:
    opened.page.keyboard.press("t")
    school = opened.page.locator("#school")
    school.get_by_role("button", name=paging, exact=True).click()
    expect(school.locator("h2")).to_contain_text("1 of ")
    titles = []
    while True:
        titles.append(school.locator("h2").inner_text())
        if school.get_by_role("button", name="next").is_disabled():
            break
        school.get_by_role("button", name="next").click()
    assert len(titles) > 20
    assert any("fault that is the guest's own" in title for title in titles)
    assert school.locator("[data-box^='physical:']").count() == 16
    opened.page.screenshot(path=SCREENSHOTS / f"lesson-{paging}.png")


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080), (3840, 2160)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_overflows(opened: Opened, width: int, height: int, theme: str) -> None:
    opened.page.set_viewport_size({"width": width, "height": height})
    opened.js("theme => { document.documentElement.dataset.theme = theme; }", theme)
    opened.js("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    over = opened.js(
        """() => [document.documentElement.scrollWidth - innerWidth,
          document.documentElement.scrollHeight - innerHeight,
          document.querySelector('header').getBoundingClientRect().height]"""
    )
    assert over[0] <= 0
    assert over[1] <= 0
    assert over[2] < 80
    opened.page.screenshot(path=SCREENSHOTS / f"{width}x{height}-{theme}.png")
