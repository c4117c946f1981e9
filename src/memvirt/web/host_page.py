# SPDX-License-Identifier: Apache-2.0
"""The questions and commands that the page of a running host has."""

from __future__ import annotations

import math
from typing import Any

from memvirt.address import GuestVirtualAddress, PhysicalPageNumber
from memvirt.size import SizeError, parse_size
from memvirt.vm.virtual_machine import VirtualMachine

from . import questions
from .app import Answer
from .host_source import HostSource
from .lesson import lesson
from .past import FRAMES
from .source import SourceError
from .wire import encode


def _number(values: dict[str, str], name: str) -> int:
    return questions.address_of(values[name], name)


def _bytes(text: str, what: str) -> int:
    """Bytes of a size as people write them; "0" is none. Raises SourceError."""
    if text.strip() in ("", "0"):
        return 0
    try:
        return parse_size(text, what=what)
    except SizeError as error:
        raise SourceError(str(error)) from error


class Now:
    """Answers about a running host. What they say is kept for who drags time back later."""

    def __init__(self, source: HostSource) -> None:
        self._source = source
        self._host = source.host

    def _vm(self, vm_id: int) -> VirtualMachine:
        return questions.find_vm(self._host.vms, vm_id)

    def map(self, vm_id: int, gva: int) -> dict[str, Any]:
        """Every step from a guest virtual address to its frame. Raises SourceError."""
        answer = questions.map_answer(self._vm(vm_id), GuestVirtualAddress(gva))
        self._source.asked.keep_walk(self._host.rounds, vm_id, answer)
        return answer

    def page(self, vm_id: int, ppn: int, *, content: bool = True) -> dict[str, Any]:
        """One guest-physical page. Raises SourceError."""
        page = PhysicalPageNumber(ppn)
        return questions.page_answer(self._vm(vm_id), page, content=content)

    def frame(self, mpn: int) -> dict[str, Any]:
        """All that maps a frame. Raises SourceError."""
        return questions.frame_answer(self._host.vms, mpn)

    def virtual(self, vm_id: int) -> dict[str, Any]:
        """What the guest's current tables map. Raises SourceError."""
        answer = questions.virtual_answer(self._vm(vm_id))
        self._source.asked.keep_virtual(self._host.rounds, answer)
        return answer


class Then:
    """The same questions about the moment of one frame. Raises NothingToSay if it is not kept."""

    def __init__(self, source: HostSource, number: int) -> None:
        self._moment = source.moment(number)
        self.map, self.frame, self.virtual = (
            self._moment.map,
            self._moment.frame,
            self._moment.virtual,
        )

    def page(self, vm_id: int, ppn: int, *, content: bool = True) -> dict[str, Any]:
        """As ``Now``; there are no bytes."""
        del content
        return self._moment.page(vm_id, ppn)


def _life(source: HostSource, values: dict[str, str]) -> dict[str, Any]:
    """Every change of a page's class that was seen, up to the moment that is looked at."""
    vm_id, ppn = _number(values, "vm"), _number(values, "ppn")
    last = _number(values, "at") if "at" in values else None
    names = source.hello()["guest_classes"]
    return {
        "life": [
            {"time_ns": header["time_ns"], "round": header["round"], "state": names[value]}
            for header, value in source.history.life(f"vm:{vm_id}", ppn)
            if last is None or header["number"] <= last
        ]
    }


def _about(source: HostSource, reader: Now | Then, values: dict[str, str]) -> dict[str, Any]:
    """All that is shown of a selection: ``kind`` is gva, ppn or mpn.

    With ``brief`` no page behind an address; with ``bytes`` and ``life`` those of the page too;
    with ``virtual`` what the tables of that VM map, unless their digest is ``known``.
    """
    virtual = {}
    if "virtual" in values:
        virtual["virtual"] = reader.virtual(_number(values, "virtual"))
        if virtual["virtual"].get("digest") == values.get("known"):
            virtual["virtual"] = {"same": True}
    return _selected(source, reader, values) | virtual


def _selected(source: HostSource, reader: Now | Then, values: dict[str, str]) -> dict[str, Any]:
    kind = values["kind"]
    if kind == "mpn":
        return {"frame": reader.frame(_number(values, "mpn"))}
    vm_id, page, gva = _number(values, "vm"), None, None
    content = "bytes" in values
    if kind == "ppn":
        page = reader.page(vm_id, _number(values, "ppn"), content=content)
        if page["addresses"]:
            gva = int(page["addresses"][0], 16)
    elif kind == "gva":
        gva = _number(values, "gva")
    else:
        raise SourceError(f'kind: "{kind[:40]}" is none of gva, ppn, mpn')
    walk = None if gva is None else reader.map(vm_id, gva)
    if page is None and walk and walk["ppn"] and walk["state"] and "brief" not in values:
        page = reader.page(vm_id, int(walk["ppn"], 16), content=content)
    frame = life = None
    if page is not None:
        if page["mpn"] is not None and page["state"] == "shared":
            frame = reader.frame(page["mpn"])
        if "life" in values:
            life = _life(source, values | {"ppn": str(page["ppn"])})["life"]
    return {"map": walk, "page": page, "frame": frame, "life": life}


def answers(source: HostSource) -> dict[str, Answer]:
    """GET /api/NAME. Those about pages take ``at``, the number of a frame: then, not now."""
    now = Now(source)

    def reader(values: dict[str, str]) -> Now | Then:
        return Then(source, _number(values, "at")) if "at" in values else now

    def at(values: dict[str, str]) -> bytes:
        moment = source.moment(_number(values, "number"))
        parts = {name: part for name, part in moment.parts.items() if not name.startswith(FRAMES)}
        return encode(moment.header | {"consoles": {}, "news": []}, parts)

    return {
        "map": lambda v: reader(v).map(_number(v, "vm"), _number(v, "gva")),
        "page": lambda v: reader(v).page(_number(v, "vm"), _number(v, "ppn")),
        "life": lambda v: _life(source, v),
        "frame": lambda v: reader(v).frame(_number(v, "mpn")),
        "virtual": lambda v: reader(v).virtual(_number(v, "vm")),
        "about": lambda v: _about(source, reader(v), v),
        "lesson": lambda v: lesson(v.get("paging", "shadow")),
        "series": lambda v: source.series,
        "events": lambda v: source.events_since(_number(v, "since")),
        "at": at,
    }


def commands(source: HostSource) -> dict[str, Answer]:
    """POST /api/NAME."""

    def control(values: dict[str, str]) -> dict[str, Any]:
        try:
            value = float(values.get("value", 0))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SourceError(f"value: {values['value'][:40]} is no number")
        source.control(values["command"], value)
        return {}

    def settings(values: dict[str, str]) -> dict[str, Any]:
        vm = questions.find_vm(source.host.vms, _number(values, "vm"))
        what, text = values["what"], values["value"]
        value = _number(values, "value") if what == "shares" else _bytes(text, what)
        source.change(vm.name, what, value)
        return {}

    def typed(values: dict[str, str]) -> dict[str, Any]:
        vm = questions.find_vm(source.host.vms, _number(values, "vm"))
        data, device = values["text"].encode(errors="replace"), values.get("device", "console")
        return {"waiting": source.consoles.type(vm, data, device)}

    return {"control": control, "settings": settings, "type": typed}
