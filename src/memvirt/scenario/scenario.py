# SPDX-License-Identifier: Apache-2.0
"""Scenarios: which VMs run on which machine, as a TOML file.

A mistake is reported with the file, the line, the key, and what would be right. The models here are
the one source of the JSON Schema and of the tables in docs/scenario.md (``memvirt schema``).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from memvirt.errors import MemvirtError
from memvirt.scenario.toml_lines import Location, line_of
from memvirt.size import format_size, parse_size
from memvirt.vmkernel.options import MemoryOptions

__all__ = [
    "Scenario",
    "ScenarioError",
    "bundled_scenarios",
    "find_scenario",
    "load_scenario",
    "parse_scenario",
    "scenario_schema",
]


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('should be a number of bytes, or text such as "64M"')
    return parse_size(value, what="size")


def _size_or_nothing(value: Any) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else _size(value)


_SIZE_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 0, "multipleOf": 4096},
            {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[KMGTkmgt]?(i?[Bb])?\s*$"},
        ]
    }
)
Size = Annotated[int, BeforeValidator(_size), _SIZE_SCHEMA]
SizeOrNothing = Annotated[int, BeforeValidator(_size_or_nothing), _SIZE_SCHEMA]

BUNDLED_IMAGE = "bundled"
SHARES_PER_MIB = {"low": 5, "normal": 10, "high": 20}


class ScenarioError(MemvirtError):
    """A scenario file that cannot be used; the message is one line."""


class _Model(BaseModel):
    # Strict: `count = true` and `count = "2"` are mistakes. No period is infinite.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """TOML has lists; frozen models have tuples."""
        if not isinstance(data, dict):
            return data
        return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


class ResizeOptions(_Model):
    """A change of machine memory while the host runs."""

    at: float = Field(ge=0, description="virtual seconds")
    memory: Size = Field(description="machine memory from then on, at most the machine's")


class MachineOptions(_Model):
    """The host: its memory, its swap, and how it manages them."""

    memory: Size = Field(description='machine memory, such as "256M"')
    scatter_seed: int | None = Field(
        default=None, description="hand out frames in a pseudo-random order with this seed"
    )
    swap: Size | None = Field(
        default=None, description="swap space for all VMs; without it, as much as they need"
    )
    state_directory: str | None = Field(
        default=None,
        description="where swap files are kept while the host runs; without it, a directory of "
        "its own for temporary files",
    )
    quantum_ms: float = Field(
        default=10, ge=0.001, le=1000,
        description="virtual milliseconds that VMs run between two quiescent points; a block of "
        "code takes up to 0.001",
    )  # fmt: skip
    resize: tuple[ResizeOptions, ...] = Field(
        default=(), description="changes of machine memory, a table each, in order of time"
    )
    Mem: MemoryOptions = Field(
        default=MemoryOptions(), description="memory management, under ESXi's names"
    )


class LiveOptions(_Model):
    """How ``memvirt manage`` treats this host; ``memvirt run`` passes it by."""

    interval: float = Field(default=1, ge=0.1, le=60, description="seconds between two decisions")
    cgroup: str = Field(
        default="", description="control group whose memory limit bounds machine memory, too"
    )
    balloon: bool = Field(default=True, description="use balloons")
    pageout: bool = Field(default=True, description="send pages to the host's swap or zram")
    ksm: bool = Field(
        default=False, description="switch KSM on while it runs, if the VMs' salts allow it"
    )
    block: bool = Field(
        default=False, description="in state low, stop VMs above their targets, as ESXi does"
    )
    working_set: Literal["auto", "damon", "idle", "off"] = Field(
        default="auto", description="how working sets are sampled"
    )
    scan_percent: float = Field(
        default=2, ge=0.1, le=100, description="of a processor, for looking at all pages"
    )
    balloon_patience: float = Field(
        default=15, ge=1, description="seconds without progress until a balloon has stopped short"
    )
    balloon_retry: float = Field(
        default=120, ge=1, description="seconds until a balloon that stopped short is tried again"
    )


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from error
    return value


class LiveVmOptions(_Model):
    """How ``memvirt manage`` finds this VM; all that is given must fit. Without any, by name."""

    qmp: str = Field(default="", description="path of its QMP socket")
    domain: str = Field(default="", description="its libvirt domain")
    command_line: Annotated[str, BeforeValidator(_pattern)] = Field(
        default="", description="regular expression, searched in QEMU's arguments"
    )
    cgroup: str = Field(
        default="", description="its control group: the kernel's own reclaim then spares its "
        "reservation",
    )  # fmt: skip


class RemapOptions(_Model):
    """What is done to the guests' pages while they run, beyond what management needs."""

    every_ms: float = Field(default=20, gt=0, description="interval, in virtual milliseconds")
    move: float = Field(default=0, ge=0, le=1, description="part of the pages to move each time")
    unmap: float = Field(default=0, ge=0, le=1, description="part of the pages to unmap each time")
    share: bool = Field(default=False, description="share pages of equal content inside each VM")
    seed: int = Field(default=1, description="seed of the choice of pages")


_NAME = r"^[^\x00-\x1f\x7f]*$"  # it is printed in tables and heads columns of CSV


class VmOptions(_Model):
    """One VM, or ``count`` alike."""

    name: str = Field(
        min_length=1, max_length=100, pattern=_NAME,
        description="its name; with count, NAME-1, NAME-2, ...",
    )  # fmt: skip
    image: str = Field(default=BUNDLED_IMAGE, description='kernel image: a path, or "bundled"')
    memory: Size = Field(description='guest-physical memory, such as "64M"')
    paging: Literal["shadow", "nested"] = Field(
        default="nested", description="shadow or nested page tables"
    )
    append: str = Field(default="", description="kernel command line")
    initrd: str | None = Field(default=None, description="initial RAM disk: a path")
    count: int = Field(default=1, ge=1, le=1000, description="number of such VMs")
    shares: Literal["low", "normal", "high"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default="normal",
        description="weight of its claim on memory: low, normal or high (5, 10 or 20 a MiB of "
        "memory), or the number of all its shares",
    )
    reservation: SizeOrNothing = Field(default=0, description="machine memory it always has")
    limit: Size | None = Field(default=None, description="most machine memory it may have")
    group: str = Field(default="", description="VMs of one group may share pages")
    start: float = Field(default=0, ge=0, description="virtual seconds until it is powered on")
    live: LiveVmOptions = Field(
        default=LiveVmOptions(), description="for memvirt manage: how it is found on this host"
    )

    @model_validator(mode="after")
    def _amounts_fit(self) -> VmOptions:
        if self.reservation > self.memory:
            raise _Misfit("reservation", self.reservation, "memory", self.memory)
        if self.limit is not None and self.reservation > self.limit:
            raise _Misfit("reservation", self.reservation, "limit", self.limit)
        return self


class Scenario(_Model):
    """A scenario file of ``memvirt run``."""

    machine: MachineOptions = Field(description="the host")
    vm: tuple[VmOptions, ...] = Field(min_length=1, description="the VMs, a table each")
    remap: RemapOptions = Field(default=RemapOptions(), description="remapping for its own sake")
    live: LiveOptions = Field(
        default=LiveOptions(), description="for memvirt manage: how this host is managed"
    )
    seed: int = Field(default=1, ge=0, description="seed of all that policies decide by chance")
    timeout: float = Field(default=600, gt=0, description="seconds of host time for the whole run")
    check: bool = Field(default=True, description="run the consistency checker as it goes")


class _Misfit(ValueError):
    """Two amounts of one VM that cannot both be."""

    def __init__(self, key: str, value: int, other: str, bound: int) -> None:
        super().__init__(f"{format_size(value)} is more than {other}, {format_size(bound)}")
        self.key = key


def names_of(options: VmOptions) -> list[str]:
    """The name of the VM, or those of ``count`` VMs."""
    if options.count == 1:
        return [options.name]
    return [f"{options.name}-{number}" for number in range(1, options.count + 1)]


def shares_of(options: VmOptions) -> int:
    """All shares of the VM (vSphere: so many a MiB of configured memory, or a custom number)."""
    if isinstance(options.shares, int):
        return options.shares
    return SHARES_PER_MIB[options.shares] * max(options.memory >> 20, 1)


# Bundled scenarios ----------------------------------------------------------------------------

_FOLDER = Path(__file__).parent / "bundled"
BUNDLED_SCENARIO = _FOLDER / "default.toml"


def bundled_scenarios() -> dict[str, str]:
    """Names of the bundled scenarios, each with the first sentence of its comment."""
    found = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        comment = " ".join(line.removeprefix("#").strip() for line in _leading_comment(lines))
        found[path.stem] = comment.split(". ")[0].removesuffix(".")
    return found


def _leading_comment(lines: list[str]) -> list[str]:
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def find_scenario(name: str) -> Path:
    """The file of a scenario: a path, or the name of a bundled one. Raises ScenarioError."""
    path = Path(name)
    if path.exists() or path.suffix == ".toml":
        return path
    bundled = _FOLDER / f"{name}.toml"
    if bundled.exists():
        return bundled
    known = ", ".join(bundled_scenarios())
    raise ScenarioError(f"{name}: no such file, and no bundled scenario; bundled are {known}")


# Reading and explaining ------------------------------------------------------------------------


def _model_at(location: Location) -> Any:
    """The model whose keys stand at ``location``."""
    field = {
        "machine": MachineOptions, "resize": ResizeOptions, "Mem": MemoryOptions,
        "remap": RemapOptions, "vm": VmOptions,
    }  # fmt: skip
    model: Any = Scenario
    for part in location:
        if part == "live":
            model = LiveVmOptions if model is VmOptions else LiveOptions
        model = field.get(str(part), model)
    return model


def _keys(model: Any) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _explain(error: Any, location: Location) -> str:
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    if error["type"] == "extra_forbidden":
        known = _keys(_model_at(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        return f'unknown key "{key}"{hint}; known here: {", ".join(known)}'
    if error["type"] == "missing":
        return f'"{key}" is missing'
    if error["type"] == "tuple_type":
        return f'"{key}": should be a list of tables, each headed [[{key}]]'
    if error["type"] == "string_pattern_mismatch":
        return f'"{key}": should have no control characters'
    if key == "vm.shares":
        return '"vm.shares": should be "low", "normal", "high" or a number of at least 1'
    message = error["msg"]
    for prefix in ("Value error, ", "Input ", "String "):
        message = message.removeprefix(prefix)
    return f'"{key}": {message}'


def _location(error: Any) -> Location:
    """Where an error is, in terms of the file."""
    location: Location = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, _Misfit):
        return (*location, cause.key)
    if len(location) > 3 and location[0] == "vm" and location[2] == "shares":
        return location[:3]  # which of the alternatives of a union failed says nothing
    return location


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from TOML text; ``name`` is used in messages. Raises ScenarioError."""
    try:
        scenario = Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{name}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        location = _location(first)
        line = line_of(text, location)
        raise ScenarioError(f"{name}:{line}: {_explain(first, location)}") from error
    names: set[str] = set()
    for index, vm in enumerate(scenario.vm):
        for vm_name in names_of(vm):
            if vm_name in names:
                line = line_of(text, ("vm", index, "name"))
                raise ScenarioError(f'{name}:{line}: "vm.name": there is a VM {vm_name} already')
            names.add(vm_name)
    return scenario


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in a file, whose relative paths start at that file. Raises ScenarioError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(f"{path}: cannot be read: {reason}") from error
    return _with_paths_from(parse_scenario(text, str(path)), Path(path).absolute().parent)


def _with_paths_from(scenario: Scenario, folder: Path) -> Scenario:
    def absolute(name: str | None) -> str | None:
        return name if name in (None, BUNDLED_IMAGE) else str(folder / str(name))

    vms = tuple(
        vm.model_copy(update={"image": absolute(vm.image), "initrd": absolute(vm.initrd)})
        for vm in scenario.vm
    )
    directory = absolute(scenario.machine.state_directory)
    machine = scenario.machine.model_copy(update={"state_directory": directory})
    return scenario.model_copy(update={"vm": vms, "machine": machine})


# Documentation ---------------------------------------------------------------------------------


def scenario_schema() -> dict[str, Any]:
    """The JSON Schema of scenario files."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def key_tables() -> str:
    """Markdown tables of all keys: docs/scenario.md."""
    parts = []
    for title, model in (
        ("top level", Scenario),
        ("[machine]", MachineOptions),
        ("[[machine.resize]]", ResizeOptions),
        ("[machine.Mem]", MemoryOptions),
        ("[[vm]]", VmOptions),
        ("[vm.live]", LiveVmOptions),
        ("[remap]", RemapOptions),
        ("[live]", LiveOptions),
    ):
        parts.append(f"## `{title}`\n\n| key | default | meaning |\n|---|---|---|")
        for name, field in model.model_fields.items():
            parts.append(f"| `{field.alias or name}` | {_default(field)} | {field.description} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: Any) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if value is None or isinstance(value, BaseModel) or value in ("", ()):
        return "-"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else getattr(value, 'value', value)}`"
