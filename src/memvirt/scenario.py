# SPDX-License-Identifier: Apache-2.0
"""Scenarios: which VMs run on which machine, as a TOML file.

A mistake is reported with the file, the line, the key, and what would be right.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from memvirt.size import parse_size
from memvirt.vmkernel.options import MemoryOptions

Size = Annotated[int, BeforeValidator(lambda value: parse_size(value, what="size"))]


class ScenarioError(Exception):
    """A scenario file that cannot be used; the message is one line."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineOptions(_Model):
    """``[machine]``: the host's memory."""

    memory: Size = Field(description='machine memory, such as "256M"')
    scatter_seed: int | None = Field(
        default=None, description="hand out frames in a pseudo-random order with this seed"
    )
    swap: Size | None = None
    state_directory: str | None = None
    quantum_ms: float = 10
    Mem: MemoryOptions = MemoryOptions()


class RemapOptions(_Model):
    """``[remap]``: what is done to the guests' pages while they run, without their knowledge."""

    every_ms: float = Field(default=20, gt=0, description="interval, in virtual milliseconds")
    move: float = Field(default=0, ge=0, le=1, description="part of the pages to move each time")
    unmap: float = Field(default=0, ge=0, le=1, description="part of the pages to unmap each time")
    share: bool = Field(default=False, description="share pages of equal content inside each VM")
    seed: int = Field(default=1, description="seed of the choice of pages")


class VmOptions(_Model):
    """``[[vm]]``: one VM, or ``count`` alike."""

    name: str = Field(min_length=1)
    image: str = Field(default="bundled", description='a path, or "bundled"')
    memory: Size = Field(description='guest-physical memory, such as "64M"')
    paging: Literal["shadow", "nested"] = "nested"
    append: str = Field(default="", description="kernel command line")
    initrd: str | None = None
    count: int = Field(default=1, ge=1, le=1000)
    shares: Literal["low", "normal", "high"] | int = "normal"
    reservation: Annotated[
        int, BeforeValidator(lambda v: 0 if v == 0 else parse_size(v, what="size"))
    ] = 0
    limit: Size | None = None
    group: str = ""
    start: float = 0


class Scenario(_Model):
    """A whole scenario file."""

    machine: MachineOptions
    remap: RemapOptions = RemapOptions()
    seed: int = 1
    timeout: float = Field(default=600, gt=0, description="seconds of host time")
    check: bool = Field(default=True, description="run the consistency checker as it goes")
    vm: tuple[VmOptions, ...] = Field(min_length=1)


def shares_of(options: VmOptions) -> int:
    if isinstance(options.shares, int):
        return options.shares
    return {"low": 5, "normal": 10, "high": 20}[options.shares] * max(options.memory >> 20, 1)


BUNDLED_SCENARIO = Path(__file__).parent / "scenarios" / "default.toml"


def _line_of(text: str, location: tuple[str | int, ...]) -> int:
    """The line where the key at ``location`` stands, or its table, or 1."""
    tables: dict[str, int] = {}
    inside: tuple[str | int, ...] = ()
    best = 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            index = tables[header[1]] = tables.get(header[1], -1) + 1
            inside = (header[1], index)
        elif header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            inside = tuple(header[1].split("."))
        key = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line)
        here = (*inside, key[1]) if key else inside
        if here and here == location[: len(here)]:
            best = number
            if len(here) == len(location):
                return number
    return best


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model: Any = Scenario
        for part in error["loc"][:-1]:
            field = {"machine": MachineOptions, "remap": RemapOptions, "vm": VmOptions}
            model = field.get(part, model)
        return f'unknown key "{location}"; known here: {", ".join(model.model_fields)}'
    if error["type"] == "missing":
        return f'"{location}" is missing'
    message = error["msg"].removeprefix("Value error, ")
    return f'"{location}": {message}'


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from TOML text; ``name`` is used in messages. Raises ScenarioError."""
    try:
        return Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{name}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        line = _line_of(text, first["loc"])
        raise ScenarioError(f"{name}:{line}: {_explain(first)}") from error


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in a file. Raises ScenarioError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(f"{path}: cannot be read: {reason}") from error
    return parse_scenario(text, str(path))
