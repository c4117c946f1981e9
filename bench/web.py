# SPDX-License-Identifier: Apache-2.0
"""What a page in the browser costs: 10 simulated VMs of 1 GiB, and a running host.

In the browser: main-thread time of an update (Chromium's own count of its tasks: decoding,
tables, drawing) and bytes on the wire, at ten updates a second. On the host: CPU time of a frame,
and rounds a second with a page open and without.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import Future
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
_ROUNDS = 300
_CLASSES = np.array(
    [getattr(GuestClass, state.name, GuestClass.UNMAPPED) for state in PageState], np.uint8
)


class SimulationSource:
    """Ten frames a second of a simulated host in state hard: a step of a second for each."""

    def __init__(self) -> None:
        self._host = make(_VMS, 20)
        self.latest: Frame | None = None
        self._history = History()
        self._before: Any = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.frames = 0

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            began = time.monotonic()
            self._host.step(1.0)
            sample = self._host.kernel.sample()
            parts = sorted_parts(sample)
            for guest in self._host.guests:
                parts[f"vm:{guest.vm_id}"] = _CLASSES[guest._state]
            self.frames += 1
            header = sample_header(sample, Interval(sample, self._before)) | {
                "number": self.frames,
                "round": self.frames,
                "playing": True,
                "marks": marks(sample.host.min_free, 400),
                "events": 0,
            }
            self._before = sample
            self._history.add(self.frames, header, parts)
            self.latest = Frame(self.frames, header, parts)
            time.sleep(max(FRAME_SECONDS - (time.monotonic() - began), 0))

    def hello(self) -> dict[str, Any]:
        return {
            "kind": "simulation",
            "title": "ten simulated VMs",
            "frames": self._host.machine.frames,
            "guest_classes": names(GuestClass),
            "frame_classes": names(FrameClass),
            "columns": [[column.name, column.meaning, column.decimals] for column in COLUMNS],
            "states": [state.name.lower() for state in HostState],
            "can": [],
        }

    def watch(self, viewers: int) -> None:
        """It runs whoever looks."""

    def ask(self, question: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(question())
        return future

    def close(self) -> None:
        self._closed = True
        self._thread.join()


def in_browser() -> None:
    """Main-thread milliseconds an update, and bytes a second."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("  no chromium here: tests/install_packages.sh")
        return
    source = SimulationSource()
    server = WebServer(
        source, Address(), answers={"series": lambda _: [], "events": lambda _: []}, commands={}
    )
    source.start()
    server.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"],
        )
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.goto(server.url)
        while not page.evaluate("globalThis.memvirt?.received.frames ?? 0"):
            page.wait_for_timeout(50)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")

        def metrics() -> tuple[float, int, int]:
            got = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            seen = page.evaluate("[memvirt.received.frames, memvirt.received.bytes]")
            return got["TaskDuration"], seen[0], seen[1]

        before, began = metrics(), time.monotonic()
        page.wait_for_timeout(_SECONDS * 1000)
        after, seconds = metrics(), time.monotonic() - began
        browser.close()
    server.close()
    source.close()
    updates = after[1] - before[1]
    print(
        f"  {_VMS} VMs of {VM_PAGES * 4096 >> 30} GiB: {updates / seconds:.1f} updates/s, "
        f"{(after[0] - before[0]) / updates * 1e3:.1f} ms of main thread an update, "
        f"{(after[2] - before[2]) / seconds / 1e6:.2f} MB/s"
    )


def rounds_a_second(viewers: int) -> tuple[float, float]:
    """(rounds a wall second, CPU milliseconds of a frame) of the default scenario, all frames."""
    with Host(load_scenario(find_scenario("default"))) as host:
        source = HostSource(host, title="bench", wait_for_viewer=False)
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
        source.watch(viewers)
        began = time.monotonic()
        source.start()
        while host.rounds < _ROUNDS and not source.done:
            time.sleep(0.01)
        rate = host.rounds / (time.monotonic() - began)
        server.close()
        source.close()
    return rate, float(np.mean(frames)) * 1e3 if frames else 0.0


def main() -> None:
    print("The page in the browser")
    in_browser()
    rounds_a_second(0)  # what is compiled or read from a cache
    without, _ = rounds_a_second(0)
    with_page, frame = rounds_a_second(1)
    print(f"  a host: {without:.1f} rounds/s, {with_page:.1f} with a page open (wall time)")
    part = frame / 1e3 / FRAME_SECONDS * 100
    print(f"  a frame: {frame:.1f} ms of the host's thread: {part:.1f} % at ten a second")
