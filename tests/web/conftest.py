# SPDX-License-Identifier: Apache-2.0
"""A host of three small VMs behind the web server, and Debian's Chromium to look at it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario
from memvirt.web import host_page
from memvirt.web.host_source import HostSource
from memvirt.web.server import Address, WebServer

CHROMIUM = shutil.which("chromium")
_SECONDS = 300  # for anything to happen, on a busy machine
expect.set_options(timeout=_SECONDS * 1000)
HOSTILE = "<img src=x onerror=document.title='taken'>"
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"

SCENARIO = f"""
seed = 3
timeout = 3000
check = false
[machine]
memory = "24M"
quantum_ms = 5
[machine.Mem]
ShareScanTime = 0.01
SamplePeriod = 0.05
BalancePeriod = 0.05
[[vm]]
name = "shadowed"
memory = "8M"
paging = "shadow"
append = "workload=idle percent=60 ticks=100000"
group = "twins"
[[vm]]
name = "nested"
memory = "8M"
paging = "nested"
append = "workload=idle percent=60 ticks=100000"
group = "twins"
[[vm]]
name = "{HOSTILE}"
memory = "8M"
append = "workload=random percent=60 operations=2000000000"
"""


@dataclass(frozen=True)
class Served:
    """One running server and what is behind it."""

    host: Host
    source: HostSource
    server: WebServer

    def ask(self, question: Callable[[], Any]) -> Any:
        """What the Python API says, between two rounds."""
        return self.source.ask(question).result(_SECONDS)

    def round(self) -> int:
        return int(self.ask(lambda: self.host.rounds))

    def last_round(self) -> int | None:
        """The round at which a paused host stands, None while it has some to make."""
        source = self.source
        found: int | None = self.ask(
            lambda: None if source._steps and not source.done else self.host.rounds
        )
        return found


@contextmanager
def serving(scenario: str, *, rounds: int = 0) -> Iterator[Served]:
    """The host of a scenario, after so many rounds, behind the web server."""
    with Host(parse_scenario(scenario, "test")) as host:
        for _ in range(rounds):
            host.step()
        source = HostSource(host, title="test")
        server = WebServer(
            source,
            Address(),
            answers=host_page.answers(source),
            commands=host_page.commands(source),
        )
        source.start()
        server.start()
        try:
            yield Served(host, source, server)
        finally:
            server.close()
            source.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving(SCENARIO, rounds=120) as made:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: tests/install_packages.sh")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@dataclass
class Opened:
    """A page that is open, paused, and what its console said."""

    page: Page
    said: list[str] = field(default_factory=list)

    def js(self, expression: str, argument: Any = None) -> Any:
        return self.page.evaluate(expression, argument)

    def until(self, expression: str, argument: Any = None) -> None:
        """Wait until ``expression`` is true in the page.

        Playwright's own wait_for_function evaluates text inside the page, which its policy of
        contents forbids.
        """
        deadline = time.monotonic() + _SECONDS
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    def drawn(self, vm_id: int, page: int) -> str:
        """The colour of a guest page in its lane, read back from what WebGL has drawn."""
        colour: str = self.js(
            """([vm, page]) => {
              const lane = memvirt.pagemap.lanes.physical.get(vm);
              lane.show(page, 16);
              const canvas = memvirt.pagemap.image(), gl = canvas.getContext('webgl2');
              const box = lane.box(page), ratio = devicePixelRatio, pixel = new Uint8Array(4);
              gl.readPixels(Math.round((box.x + box.w / 2) * ratio),
                canvas.height - Math.round((box.y + box.h / 2) * ratio), 1, 1,
                gl.RGBA, gl.UNSIGNED_BYTE, pixel);
              const hex = [...pixel.slice(0, 3)].map(v => v.toString(16).padStart(2, '0')).join('');
              return '#' + hex;
            }""",
            [vm_id, page],
        )
        return colour

    def settled(self, served: Served) -> int:
        """Pause the host, wait until the page shows its last round, and return that."""
        served.ask(lambda: served.source.control("pause"))
        shown = "n => memvirt.store.live.header?.round === n && !memvirt.store.live.header.playing"
        deadline = time.monotonic() + _SECONDS
        # Rounds that were asked for one by one are still made.
        while (number := served.last_round()) is None or not self.page.evaluate(shown, number):
            assert time.monotonic() < deadline, shown
            self.page.wait_for_timeout(20)
        return number


@contextmanager
def opening(served: Served, browser: Browser) -> Iterator[Opened]:
    """The page of a server, its host paused; at the end the browser's console has said nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(_SECONDS * 1000)
    page = context.new_page()
    made = Opened(page)
    page.on("console", lambda message: made.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: made.said.append(str(error)))
    page.goto(served.server.url)
    made.until("globalThis.memvirt?.store.live.header != null")
    made.settled(served)
    try:
        yield made
    finally:
        context.close()
    assert made.said == []


@pytest.fixture
def opened(served: Served, browser: Browser) -> Iterator[Opened]:
    with opening(served, browser) as made:
        yield made
