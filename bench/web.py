# SPDX-License-Identifier: Apache-2.0
"""What a page in the browser costs: 10 simulated VMs of 1 GiB, and a running host.

In the browser: CPU time of the main thread an update (Chromium's own count of its tasks: decoding,
tables, drawing) and bytes on the wire, at ten updates a second. On the host: CPU seconds of a whole
scenario at full speed, server and answers included, with a page open and with none.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import Future
from statistics import median
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from bench.vmkernel_scale import VM_PAGES, make
from memvirt.host.host import Host
from memvirt.observe.esxtop import COLUMNS, Interval
from memvirt.observe.page_classes import FrameClass, GuestClass, names
from memvirt.scenario.scenario import find_scenario, load_scenario
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.simulated_guest import PageState
from memvirt.web import host_page
from memvirt.web.history import History
from memvirt.web.host_source import FRAME_SECONDS, HostSource
from memvirt.web.moment import marks, sample_header
from memvirt.web.record_source import sorted_parts
from memvirt.web.server import Address, WebServer
from memvirt.web.source import Frame

_VMS = 10
_SECONDS = 20.0
_MOMENTS = 30
_PAIRS = 9
_ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
_CLASSES = np.array(
    [getattr(GuestClass, state.name, GuestClass.UNMAPPED) for state in PageState], np.uint8
)


class SimulationSource:
    """Ten frames a second of a simulated host in state hard, between each two a second of its time.

    A step takes longer than a frame may, so they are made beforehand, and shown to and fro.
    """

    def __init__(self) -> None:
        host = make(_VMS, 20)
        self._machine_frames = host.machine.frames
        self._moments = [self._moment(host) for _ in range(_MOMENTS)]
        self.latest: Frame | None = None
        self._history = History()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.frames = 0

    def start(self) -> None:
        self._thread.start()

    @staticmethod
    def _moment(host: Any) -> tuple[Any, Any]:
        host.step(1.0)
        sample = host.kernel.sample()
        parts = sorted_parts(sample)
        for guest in host.guests:
            parts[f"vm:{guest.vm_id}"] = _CLASSES[guest._state]
        return sample, parts

    def _run(self) -> None:
        while not self._closed:
            began = time.monotonic()
            at = self.frames % (2 * _MOMENTS - 2)
            sample, parts = self._moments[min(at, 2 * _MOMENTS - 2 - at)]
            self.frames += 1
            header = sample_header(sample, Interval(sample, None)) | {
                "number": self.frames,
                "round": self.frames,
                "playing": True,
                "marks": marks(sample.host.min_free, 400),
                "events": 0,
            }
            self._history.add(self.frames, json.dumps(header).encode(), parts)
            self.latest = Frame(self.frames, header, parts)
            time.sleep(max(FRAME_SECONDS - (time.monotonic() - began), 0))

    def hello(self) -> dict[str, Any]:
        return {
            "kind": "simulation",
            "title": "ten simulated VMs",
            "frames": self._machine_frames,
            "guest_classes": names(GuestClass),
            "frame_classes": names(FrameClass),
            "columns": [[column.name, column.meaning, column.decimals] for column in COLUMNS],
            "states": [state.name.lower() for state in HostState],
            "shown": [],
            "can": [],
        }

    def watch(self, viewers: int, activity: int = 0) -> None:
        """It runs whoever looks."""

    def events_since(self, position: int) -> list[dict[str, Any]]:
        """There are none."""
        return []

    def ask(self, question: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(question())
        return future

    def close(self) -> None:
        self._closed = True
        self._thread.join()


def in_browser() -> None:
    """Main-thread milliseconds an update, and bytes a second."""
    if shutil.which("chromium") is None:
        print("  no chromium here: tests/install_packages.sh")
        return
    source = SimulationSource()
    server = WebServer(
        source, Address(), answers={"series": lambda _: [], "events": lambda _: []}, commands={}
    )
    source.start()
    server.start()
    with sync_playwright() as playwright:
        page = _open(playwright, server.url)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def metrics() -> tuple[float, int, int]:
            got = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            seen = page.evaluate("[memvirt.received.frames, memvirt.received.bytes]")
            return got["TaskDuration"], seen[0], seen[1]

        before, began = metrics(), time.monotonic()
        page.wait_for_timeout(_SECONDS * 1000)
        after, seconds = metrics(), time.monotonic() - began
        page.context.browser.close()
    server.close()
    source.close()
    updates = after[1] - before[1]
    print(
        f"  {_VMS} VMs of {VM_PAGES * 4096 >> 30} GiB: {updates / seconds:.1f} updates/s, "
        f"{(after[0] - before[0]) / updates * 1e3:.1f} ms of main thread an update, "
        f"{(after[2] - before[2]) / seconds / 1e6:.2f} MB/s"
    )


def _open(playwright: Any, url: str) -> Any:
    """A browser with the page open, drawing."""
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    page.goto(url)
    while not page.evaluate("globalThis.memvirt?.received.frames ?? 0"):
        page.wait_for_timeout(50)
    return page


def _run_default(playwright: Any) -> tuple[float, int, float]:
    """The default scenario at full speed to its end, with a page open if ``playwright`` is given.

    (CPU seconds of this process, server included; frames captured; seconds of CPU they took).
    """
    with Host(load_scenario(find_scenario("default"))) as host:
        source = HostSource(host, title="bench", wait_for_viewer=False, speed=0)
        frames: list[float] = []
        capture = source.capture

        def timed() -> Frame:
            began = time.thread_time()
            frame = capture()
            frames.append(time.thread_time() - began)
            return frame

        source.capture = timed  # type: ignore[method-assign]
        server = WebServer(
            source,
            Address(),
            answers=host_page.answers(source),
            commands=host_page.commands(source),
        )
        server.start()
        page = None
        if playwright is not None:
            source.control("pause")
            source.start()
            page = _open(playwright, server.url)
        frames.clear()
        began = time.process_time()
        if page is None:
            source.start()
        else:
            source.ask(lambda: source.control("play"))
        while not source.done:
            # Waiting in the page lets Playwright, whose processor time would count, sleep.
            time.sleep(0.1)
        spent = time.process_time() - began
        if page is not None:
            page.context.browser.close()
        server.close()
        source.close()
    return spent, len(frames), sum(frames)


def slowdown() -> None:
    """CPU seconds of the default scenario with a page open and with none.

    In pairs, every other one the other way round, so that a machine that gets slower or faster
    favours neither; the median of the pairs' ratios counts.
    """
    if shutil.which("chromium") is None:
        return
    pairs = []
    with sync_playwright() as playwright:
        _run_default(None)  # what is compiled or read from a cache
        for number in range(_PAIRS):
            ways = [None, playwright] if number % 2 == 0 else [playwright, None]
            runs = [_run_default(way) for way in ways]
            pairs.append(runs if number % 2 == 0 else runs[::-1])
    ratios = sorted(page[0] / none[0] for none, page in pairs)
    percent = [f"{(ratio - 1) * 100:+.1f} %" for ratio in ratios]
    frames = sum(page[1] for _, page in pairs)
    taken = sum(page[2] for _, page in pairs)
    print(
        f"  the default scenario: {median(none[0] for none, _ in pairs):.2f} CPU s, "
        f"{median(page[0] for _, page in pairs):.2f} with a page open: {percent[_PAIRS // 2]} "
        f"(median of {_PAIRS} pairs, {percent[0]} to {percent[-1]}; "
        f"{frames // _PAIRS} frames, {taken / frames * 1e3:.1f} ms each)"
    )


def main() -> None:
    print("The page in the browser")
    print(f"  load average {os.getloadavg()[0]:.1f}")
    in_browser()
    slowdown()
