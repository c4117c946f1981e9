# SPDX-License-Identifier: Apache-2.0
"""The questions and commands that the page of a running host has."""

from __future__ import annotations

from typing import Any

from memvirt.address import GuestVirtualAddress, PhysicalPageNumber
from memvirt.size import SizeError, parse_size

from . import questions
from .app import Answer
from .host_source import HostSource
from .lesson import lesson
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


def answers(source: HostSource) -> dict[str, Answer]:
    """GET /api/NAME."""
    host = source.host

    def vm(values: dict[str, str]) -> Any:
        return questions.find_vm(host.vms, _number(values, "vm"))

    def page(values: dict[str, str]) -> Any:
        machine, ppn = vm(values), PhysicalPageNumber(_number(values, "ppn"))
        return questions.page_answer(machine, ppn)

    def life(values: dict[str, str]) -> Any:
        """Every change of a page's class since the page was opened."""
        machine, ppn = vm(values), PhysicalPageNumber(_number(values, "ppn"))
        names = source.hello()["guest_classes"]
        changes = source.history.life(f"vm:{machine.vm_id}", ppn)
        return {
            "life": [
                {"time_ns": header["time_ns"], "round": header["round"], "state": names[value]}
                for header, value in changes
            ]
        }

    def at(values: dict[str, str]) -> bytes:
        number = _number(values, "number")
        try:
            header, parts = source.history.at(number)
        except KeyError:
            raise SourceError(
                f"frame {number} is not kept any more: the oldest is {source.history.first}"
            ) from None
        return encode(header | {"consoles": {}}, parts)

    return {
        "map": lambda values: questions.map_answer(
            vm(values), GuestVirtualAddress(_number(values, "gva"))
        ),
        "page": page,
        "life": life,
        "frame": lambda values: questions.frame_answer(host.vms, _number(values, "mpn")),
        "virtual": lambda values: questions.virtual_answer(vm(values)),
        "lesson": lambda values: lesson(values.get("paging", "shadow")),
        "series": lambda values: source.series,
        "events": lambda values: source.events_since(_number(values, "since")),
        "at": at,
    }


def commands(source: HostSource) -> dict[str, Answer]:
    """POST /api/NAME."""

    def control(values: dict[str, str]) -> dict[str, Any]:
        try:
            value = float(values.get("value", 0))
        except ValueError:
            raise SourceError(f"value: {values['value'][:40]} is no number") from None
        source.control(values["command"], value)
        return {}

    def settings(values: dict[str, str]) -> dict[str, Any]:
        vm = questions.find_vm(source.host.vms, _number(values, "vm"))
        what, text = values["what"], values["value"]
        value = _number(values, "value") if what == "shares" else _bytes(text, what)
        source.change(vm.name, what, value)
        return {}

    return {"control": control, "settings": settings}
