# SPDX-License-Identifier: Apache-2.0
"""A running host as the page sees it: a thread of its own steps it, captures frames, answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from memvirt.errors import MemvirtError
from memvirt.host.host import Host
from memvirt.observe.esxtop import COLUMNS, Interval
from memvirt.observe.page_classes import FrameClass, GuestClass, host_pages, names
from memvirt.vmkernel.samples import HostState, Sample

from .history import History
from .moment import marks, plain, point, sample_header
from .source import Frame, SourceError
from .wire import parts_of

FRAME_SECONDS = 0.1  # between two frames at the most: ten a second
CONSOLE_BYTES = 64 << 10  # of each console, the end
READABLE = 5.0  # rounds a second to begin with: a person can follow
MOST_OF_TIME = 0.03  # part of the host's processor time that frames may take while it runs
MOST_POINTS = 20_000  # of the time line, and events: the oldest go


class HostSource:
    """The source for ``host``, which this object's thread owns from ``start`` on.

    It runs, ``speed`` rounds a second (0: as fast as it goes), when the first page is opened, or,
    with ``wait_for_viewer`` false, at once. ``columns`` are those of the table that a page shows to
    begin with, none for its own choice. ``after_round`` is called after each round, in this
    object's thread.
    """

    def __init__(
        self,
        host: Host,
        *,
        title: str,
        wait_for_viewer: bool = True,
        speed: float = READABLE,
        columns: Sequence[str] = (),
        after_round: Callable[[], object] = lambda: None,
    ) -> None:
        self.host = host
        self._after_round = after_round
        self._title = title
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._closed = False
        self._viewers = 0
        self._playing = not wait_for_viewer
        self._starts_when_watched = wait_for_viewer
        self._steps = 0
        self._rounds_a_second = speed
        self._columns = list(columns)
        self._done = False
        self._error = ""
        self._dirty = True
        self._waited = 0.0  # seconds this thread kept still for the pace
        self._next_frame, self._next_paid = 0.0, 0.0
        self._started = time.monotonic()
        self._before: Sample | None = None
        self._latest: Frame | None = None
        self._numbers = 0
        self.history = History()
        self.series: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._events_seen = 0
        self._thread = threading.Thread(target=self._run, name="host", daemon=True)

    # Any thread --------------------------------------------------------------------------------

    @property
    def latest(self) -> Frame | None:
        return self._latest

    @property
    def done(self) -> bool:
        """True when every VM has ended."""
        return self._done

    @property
    def error(self) -> str:
        """Why the host cannot go on, or empty."""
        return self._error

    def start(self) -> None:
        self._thread.start()

    def watch(self, viewers: int) -> None:
        self._viewers = viewers
        if viewers and self._starts_when_watched:
            self._starts_when_watched, self._playing = False, True
        self._dirty = True
        self._wake.set()

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._queue.put((question, future))
        self._wake.set()
        return future

    def close(self) -> None:
        """Stop the thread at the next quiescent point. The host stays as it is."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def hello(self) -> dict[str, Any]:
        machine = self.host.machine
        return {
            "kind": "host",
            "title": self._title,
            "frames": machine.frames,
            "guest_classes": names(GuestClass),
            "frame_classes": names(FrameClass),
            "columns": [[column.name, column.meaning, column.decimals] for column in COLUMNS],
            "states": [state.name.lower() for state in HostState],
            "shown": self._columns,
            "can": ["play", "step", "speed", "set", "ask", "history"],
        }

    # The host's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            self._answer()
            if self._latest is None:
                self._capture_if_watched(force=True)
            if not (self._playing or self._steps) or self._done or self._error:
                self._capture_if_watched(force=self._dirty)
                self._wake.wait(0.25)
                self._wake.clear()
                continue
            began = time.monotonic()
            self._step()
            self._capture_if_watched(force=not self._playing)
            if self._playing and self._rounds_a_second:
                self._pause_until(began + 1 / self._rounds_a_second)

    def _pause_until(self, deadline: float) -> None:
        """Keep the pace, answering meanwhile."""
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            began = time.monotonic()
            self._wake.wait(left)
            self._wake.clear()
            self._waited += time.monotonic() - began
            self._answer()

    def _spent(self) -> float:
        """What frames are a part of: the host's processor time and its waiting, in seconds."""
        return time.process_time() + self._waited

    def _answer(self) -> None:
        while True:
            try:
                question, future = self._queue.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(question())
            except Exception as error:  # the asker's mistake must not end the host
                future.set_exception(error)

    def _step(self) -> None:
        self._steps = max(self._steps - 1, 0)
        try:
            self._done = not self.host.step()
            self._after_round()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
        self._dirty = True

    def _capture_if_watched(self, *, force: bool) -> None:
        if not self._viewers or not self._dirty:
            return
        due = time.monotonic() >= self._next_frame and self._spent() >= self._next_paid
        if force or self._done or due:
            self._dirty = False
            began = time.thread_time()
            self.capture()
            # What takes long is done less often: a page must not slow the host down.
            cost = time.thread_time() - began
            self._next_frame = time.monotonic() + FRAME_SECONDS
            self._next_paid = self._spent() + cost / MOST_OF_TIME

    def capture(self) -> Frame:
        """Make the frame of this moment. Called in the host's thread, or before it runs."""
        host = self.host
        sample = host.sample()
        self._take_events()
        pages = host_pages(host.machine, host.vms)
        self._numbers += 1
        header = self._header(sample)
        frame = Frame(self._numbers, header, parts_of(pages), self._consoles())
        self.history.add(frame.number, header, frame.parts)
        self.series.append(point(header))
        del self.series[:-MOST_POINTS]
        self._before = sample
        self._latest = frame
        return frame

    def _header(self, sample: Sample) -> dict[str, Any]:
        header = sample_header(sample, Interval(sample, self._before))
        by_id = {vm.vm_id: vm for vm in self.host.vms}
        for row in header["vms"]:
            vm = by_id.get(row["vm_id"])
            if vm is not None:
                row["outcome"] = vm.outcome.reason.value if vm.outcome else ""
                row["pages"] = vm.vmm.pmap.pages
                row["paging"] = vm.paging.name.lower()
        return header | {
            "number": self._numbers,
            "round": self.host.rounds,
            "wall": round(time.monotonic() - self._started, 3),
            "playing": self._playing and not self._done,
            "speed": self._rounds_a_second,
            "done": self._done,
            "error": self._error,
            "marks": marks(sample.host.min_free, self.host.scenario.machine.Mem.high_pct),
            "events": self._events_seen,
            "oldest": self.history.first or self._numbers,
        }

    def _take_events(self) -> None:
        log = self.host.events
        for event in log.since(self._events_seen):
            self.events.append(plain(event) | {"mechanism": str(event.mechanism)})
        self._events_seen = log.recorded
        del self.events[:-MOST_POINTS]

    def _consoles(self) -> dict[int, tuple[int, bytes]]:
        consoles = {}
        for vm in self.host.vms:
            start = max(len(vm.serial_log) - CONSOLE_BYTES, 0)
            consoles[vm.vm_id] = (vm.serial_lost + start, bytes(vm.serial_log[start:]))
        return consoles

    # Commands, in the host's thread through ``ask`` ----------------------------------------------

    def control(self, command: str, value: float = 0) -> None:
        """play, pause, step (value rounds) or speed (rounds a second, 0: as fast as it goes)."""
        if command == "play":
            self._playing = True
        elif command == "pause":
            self._playing = False
        elif command == "step":
            self._playing, self._steps = False, max(min(int(value) or 1, 1000), 1)
        elif command == "speed" and 0 <= value <= 1000:
            self._rounds_a_second = float(value)
        else:
            raise SourceError(
                f'no command "{command}"; there are play, pause, step, speed 0 to 1000'
            )
        self._dirty = True

    def change(self, name: str, what: str, value: int) -> None:
        """Change shares, or the reservation, limit or balloon target (bytes) of the VM ``name``.

        In force with the next round. Raises SourceError.
        """
        try:
            control = self.host.control(name)
            if what == "balloon":
                control.set_balloon(value, reason="set in the browser")
            elif what in ("shares", "reservation", "limit"):
                changed: dict[str, Any] = {what: value}
                control.change(**changed, reason="changed in the browser")
            else:
                raise SourceError(
                    f'no setting "{what}"; there are shares, reservation, limit, balloon'
                )
        except (MemvirtError, ValueError) as error:
            raise SourceError(str(error)) from error
        self._dirty = True

    def events_since(self, position: int) -> list[dict[str, Any]]:
        """Events from ``position`` on (a count since power-on) that are still kept."""
        first = self._events_seen - len(self.events)
        return self.events[max(position - first, 0) :]
