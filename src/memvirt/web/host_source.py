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
from memvirt.observe.page_classes import FrameClass, GuestClass, HostPages, host_pages, names
from memvirt.vmkernel.samples import HostState, Sample

from .consoles import Consoles
from .history import History
from .moment import marks, plain, point, sample_header
from .page_activity import PageActivity, UseClass
from .past import FRAMES, Asked, Moment, frames_part
from .source import Frame, NothingToSay, SourceError
from .wire import Parts, parts_of

FRAME_SECONDS = 0.1  # between two frames at the most: ten a second
READABLE = 5.0  # rounds a second to begin with: a person can follow
MOST_OF_TIME = 0.015  # part of the host's processor time that frames may take while it runs
FOR_GOOD = 1.0  # virtual seconds after which guests that do nothing wait for what is typed
MOST_POINTS = 20_000  # of the time line, and events: the oldest go


class HostSource:
    """The source for ``host``, which this object's thread owns from ``start`` on.

    It runs, ``speed`` rounds a second (0: as fast as it goes), when the first page is opened, or,
    with ``wait_for_viewer`` false, at once. ``columns`` are those of the table that a page shows to
    begin with, none for its own choice. ``after_round`` is called after each round, in this
    object's thread. Guests that halt for good wait for what is typed. ``idles``: while every VM is
    idle its virtual time passes as the host's does, for somebody who uses a console; else idle
    time is skipped at full speed, until only typing can end it.
    """

    def __init__(
        self,
        host: Host,
        *,
        title: str,
        wait_for_viewer: bool = True,
        speed: float = READABLE,
        columns: Sequence[str] = (),
        idles: bool = False,
        after_round: Callable[[], object] = lambda: None,
    ) -> None:
        self.host = host
        self._after_round = after_round
        self._title = title
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._closed = False
        self._viewers = 0
        self._observed = False  # whether somebody looks at activity
        self._activity: PageActivity | None = None
        self._idles = idles
        self._nothing = 0.0  # virtual seconds in which no VM has executed anything
        self._clocks: dict[int, tuple[int, int]] = {}
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
        self.asked = Asked()
        self.consoles = Consoles(host)
        self._moment: Moment | None = None
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

    def watch(self, viewers: int, activity: int = 0) -> None:
        self._viewers, self._observed = viewers, activity > 0
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
            "error": self._error,
            "states": [state.name.lower() for state in HostState],
            "shown": self._columns,
            "use_classes": names(UseClass),
            "can": ["play", "step", "speed", "set", "ask", "history", "type", "activity"],
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
            pause = 1 / self._rounds_a_second if self._rounds_a_second else self._idle_seconds()
            if self._playing and pause:
                self._pause_until(began + pause)

    def _pause_until(self, deadline: float) -> None:
        """Keep the pace, answering meanwhile."""
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            began = time.monotonic()
            self._wake.wait(left)
            self._wake.clear()
            self._waited += time.monotonic() - began
            self._answer()

    def _idle_seconds(self) -> float:
        """What to wait after the last round: virtual time in which no VM had anything to do."""
        waited, nothing = [], True
        for vm in self.host.vms:
            if vm.outcome is not None:
                continue
            halted, time_ns = self._clocks.get(vm.vm_id, (0, 0))
            self._clocks[vm.vm_id] = now = vm.halted_ns, vm.virtual_ns
            waited.append(now[0] - halted)
            nothing = nothing and now[0] - halted == now[1] - time_ns
        idle = min(waited, default=0) / 1e9
        self._nothing = self._nothing + idle if nothing else 0.0
        return idle if self._idles or self._nothing > FOR_GOOD else 0.0

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
            self.consoles.feed()
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
            try:
                self.capture()
            except Exception as error:
                self._fail(error)
            # What takes long is done less often: a page must not slow the host down.
            cost = time.thread_time() - began
            self._next_frame = time.monotonic() + FRAME_SECONDS
            self._next_paid = self._spent() + cost / MOST_OF_TIME

    def _fail(self, error: Exception) -> None:
        """A frame could not be made: the host stands still, and the last frame says why."""
        self._error = self._error or f"{type(error).__name__}: {error}"
        last = self._latest
        if last is not None:
            self._numbers += 1
            header = last.header | {"number": self._numbers, "error": self._error, "playing": False}
            self._latest = Frame(self._numbers, header, last.parts, last.consoles)

    def capture(self) -> Frame:
        """Make the frame of this moment. Called in the host's thread, or before it runs."""
        host = self.host
        sample = host.sample()
        self._take_events()
        pages = host_pages(host.machine, host.vms)
        parts = parts_of(pages) | self.consoles.screens() | self._use(pages)
        self._numbers += 1
        header = self._header(sample)
        frame = Frame(self._numbers, header, parts, self.consoles.tails())
        frames = {
            f"{FRAMES}{vm.vm_id}": frames_part(of.frames)
            for vm, of in zip(host.vms, pages.vms, strict=True)
            if vm.outcome is None
        }
        self.history.add(frame.number, frame.text, parts | frames)
        self.series.append(point(header))
        del self.series[:-MOST_POINTS]
        self._before = sample
        self._latest = frame
        return frame

    def _use(self, pages: HostPages) -> Parts:
        """When pages were used last, while somebody wants to know."""
        if not self._observed:
            self._activity = None
            return {}
        if self._activity is None:
            self._activity = PageActivity()
        return self._activity.look(self.host.vms, pages, self.host.rounds)

    def moment(self, number: int) -> Moment:
        """The moment of a frame that is over. Raises NothingToSay if it is not kept any more."""
        if self._moment is None or self._moment.header["number"] != number:
            try:
                header, parts = self.history.at(number)
            except KeyError:
                oldest = self.history.first
                raise NothingToSay(
                    f"frame {number} is not kept any more: the oldest is {oldest}"
                ) from None
            self._moment = Moment(header, parts, self.asked, names(GuestClass))
        return self._moment

    def _header(self, sample: Sample) -> dict[str, Any]:
        header = sample_header(sample, Interval(sample, self._before))
        by_id = {vm.vm_id: vm for vm in self.host.vms}
        for row in header["vms"]:
            vm = by_id.get(row["vm_id"])
            if vm is not None:
                row["outcome"] = vm.outcome.reason.value if vm.outcome else ""
                row["pages"] = vm.vmm.pmap.pages
                row["paging"] = vm.paging.name.lower()
                row["console"] = vm.serial_lost + len(vm.serial_log)
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
        kept = log.since(self._events_seen)
        news = [
            plain(event) | {"mechanism": str(event.mechanism), "number": number}
            for number, event in enumerate(kept, log.recorded - len(kept))
        ]
        self._events_seen = log.recorded
        # Another thread may read the list it has: a new one, where some go.
        self.events = [*self.events, *news][-MOST_POINTS:] if news else self.events

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
        events = self.events
        if not events:
            return []
        first = events[0]["number"]
        return events[max(position - first, 0) :]
