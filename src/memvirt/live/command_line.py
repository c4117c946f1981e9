# SPDX-License-Identifier: Apache-2.0
"""The command line of a QEMU process, as QEMU itself reads it.

Source: QEMU's documentation, "System Emulation, Invocation": options with one or two dashes,
``key=value`` lists in which a doubled comma stands for a comma, and JSON objects in their place
(libvirt writes those). Only what the users of this package ask for is interpreted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Options whose next argument is their value even if it begins with a dash.
_WITH_VALUE = frozenset((
    "name", "m", "uuid", "qmp", "qmp-pretty", "mon", "monitor", "chardev", "machine", "M",
    "object", "accel", "overcommit", "device", "append", "kernel", "initrd", "cpu", "smp",
    "pidfile", "serial", "drive", "blockdev", "netdev", "incoming", "mem-path", "sandbox",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The arguments after the program's name, in order, as (option, value); no value is ""."""

    options: tuple[tuple[str, str], ...]

    def values(self, *names: str) -> list[str]:
        """All values of the options called ``names`` (without dashes), in order."""
        return [value for name, value in self.options if name in names]

    def has(self, name: str) -> bool:
        """True if the option is there, with a value or without."""
        return any(option == name for option, _ in self.options)

    def properties(self, *names: str, implied: str = "") -> list[dict[str, str]]:
        """The ``key=value`` lists, or JSON objects, of the options called ``names``."""
        return [parse_properties(value, implied=implied) for value in self.values(*names)]


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Options of ``arguments`` (``argv``, program name first)."""
    options: list[tuple[str, str]] = []
    rest = list(arguments[1:])
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument == "-":
            options.append(("", argument))  # a disk image
            continue
        name = argument[2:] if argument.startswith("--") else argument[1:]
        takes = bool(rest) and (name in _WITH_VALUE or not rest[0].startswith("-"))
        options.append((name, rest.pop(0) if takes else ""))
    return CommandLine(tuple(options))


def _split_commas(text: str) -> list[str]:
    parts, current, at = [], "", 0
    while at < len(text):
        if text.startswith(",,", at):
            current += ","
            at += 2
        elif text[at] == ",":
            parts.append(current)
            current = ""
            at += 1
        else:
            current += text[at]
            at += 1
    return [*parts, current]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, bool):
            flat[prefix + key] = "on" if item else "off"
        else:
            flat[prefix + key] = item if isinstance(item, str) else json.dumps(item)
    return flat


def parse_properties(text: str, *, implied: str = "") -> dict[str, str]:
    """The keys and values of one option's value.

    ``implied`` is the key of a first word without one (``-machine q35``: "type"). Any other word
    without a value is a switch: ``server`` is server=on, ``nowait`` is wait=off. What is no list
    at all gives what could be read of it, for QEMU has accepted it already.
    """
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            return {}
        return _flatten(value) if isinstance(value, dict) else {}
    found: dict[str, str] = {}
    for number, part in enumerate(_split_commas(text)):
        key, equals, value = part.partition("=")
        if equals:
            found[key] = value
        elif number == 0 and implied:
            found[implied] = part
        elif part.startswith("no") and len(part) > 2:
            found[part[2:]] = "off"
        elif part:
            found[part] = "on"
    return found
