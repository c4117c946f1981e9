# SPDX-License-Identifier: Apache-2.0
"""A record of ``memvirt run --record`` as the page sees it: every sample is a moment of the past.

A record has how many pages are in which state, not which pages: the strips show them sorted by
state, and say so. It has no events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from memvirt.observe.esxtop import COLUMNS, Interval
from memvirt.observe.page_classes import FrameClass, GuestClass, names
from memvirt.observe.record import RecordError, read_host_record
from memvirt.vmkernel.samples import HostMemory, HostState, Sample, VmMemory

from .app import Answer
from .lesson import lesson
from .moment import marks, point, sample_header
from .questions import address_of
from .source import Frame, SourceError
from .wire import Parts, encode

_HIGH_PERCENT = 400


def _samples(path: Path) -> tuple[list[Sample], str]:
    """All samples of a record, and its name. Raises RecordError."""
    columns, about = read_host_record(path)
    times = columns["host_time_ns"]
    if not times.size:
        raise RecordError(f"{path}: no sample in it")
    starts = np.flatnonzero(np.diff(times, prepend=times[0] - 1))
    samples = []
    for start, end in zip(starts, [*starts[1:], times.size], strict=True):
        host: dict[str, Any] = {
            field.name: columns[f"host_{field.name}"][start] for field in fields(HostMemory)
        }
        host = {name: _plain(value) for name, value in host.items()}
        host["state"] = HostState[str(host["state"]).upper()]
        vms = tuple(
            VmMemory(**{f.name: _plain(columns[f.name][row]) for f in fields(VmMemory)})
            for row in range(int(start), int(end))
        )
        samples.append(Sample(HostMemory(**host), vms))
    return samples, about["name"]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _sorted_pages(size: int, amounts: list[tuple[int, float]]) -> Any:
    """An array of ``size`` classes: each class so many times, in order, the rest 0."""
    pages = np.zeros(size, np.uint8)
    at = 0
    for number, amount in amounts:
        pages[at : at + int(amount)] = number
        at += int(amount)
    return pages


def sorted_parts(sample: Sample) -> Parts:
    """Page classes sorted by state: how many there are, not where they are."""
    parts: Parts = {}
    for vm in sample.vms:
        private = max(vm.granted - vm.shared - vm.large, 0)
        parts[f"vm:{vm.vm_id}"] = _sorted_pages(
            vm.memory,
            [
                (GuestClass.LARGE, vm.large),
                (GuestClass.PRIVATE, private),
                (GuestClass.SHARED, vm.shared),
                (GuestClass.BALLOONED, vm.balloon),
                (GuestClass.COMPRESSED, vm.zipped),
                (GuestClass.SWAPPED, vm.swapped),
                (GuestClass.STORED, vm.stored),
            ],
        )
    host = sample.host
    parts["machine"] = _sorted_pages(
        host.total,
        [
            (FrameClass.VMKERNEL, host.vmkernel),
            (FrameClass.GUEST, max(host.guest - host.common, 0)),
            (FrameClass.SHARED, host.common),
            (FrameClass.NESTED, max(host.overhead - host.zip_frames, 0)),
            (FrameClass.COMPRESSED, host.zip_frames),
        ],
    )
    parts["owners"] = np.zeros(host.total, np.uint8)
    return parts


class RecordSource:
    """The source for the record at ``path``. Raises RecordError."""

    def __init__(self, path: Path) -> None:
        self._samples, self._name = _samples(path)
        self._latest = Frame(
            len(self._samples), self.header(len(self._samples)), sorted_parts(self._samples[-1])
        )

    @property
    def latest(self) -> Frame:
        return self._latest

    def start(self) -> None:
        """Nothing runs: questions are answered where they are asked."""

    def close(self) -> None:
        """Nothing is held."""

    def watch(self, viewers: int, activity: int = 0) -> None:
        """Nothing depends on who looks."""

    def events_since(self, position: int) -> list[dict[str, Any]]:
        """A record has no events."""
        return []

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(question())
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def hello(self) -> dict[str, Any]:
        return {
            "kind": "record",
            "title": self._name,
            "frames": self._samples[0].host.total,
            "guest_classes": names(GuestClass),
            "frame_classes": names(FrameClass),
            "columns": [[column.name, column.meaning, column.decimals] for column in COLUMNS],
            "states": [state.name.lower() for state in HostState],
            "shown": [],
            "can": ["history"],
        }

    def header(self, number: int) -> dict[str, Any]:
        """Header of sample ``number``, counted from 1. Raises SourceError."""
        if not 1 <= number <= len(self._samples):
            raise SourceError(f"sample {number}: the record has 1 to {len(self._samples)}")
        sample = self._samples[number - 1]
        interval = Interval(sample, self._samples[number - 2] if number > 1 else None)
        header = sample_header(sample, interval)
        header |= {
            "number": number,
            "round": number,
            "marks": marks(sample.host.min_free, _HIGH_PERCENT),
            "done": number == len(self._samples),
            "events": 0,
        }
        return header

    def at(self, number: int) -> bytes:
        """The message of one sample, whole."""
        return encode(self.header(number), sorted_parts(self._samples[number - 1]))

    def series(self) -> list[dict[str, Any]]:
        return [point(self.header(number)) for number in range(1, len(self._samples) + 1)]


def answers(source: RecordSource) -> dict[str, Answer]:
    """GET /api/NAME."""
    return {
        "series": lambda values: source.series(),
        "events": lambda values: [],
        "lesson": lambda values: lesson(values.get("paging", "shadow")),
        "at": lambda values: source.at(address_of(values["number"], "number")),
    }
