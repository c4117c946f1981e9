# SPDX-License-Identifier: Apache-2.0
"""The keys of a scenario file: what each may hold, what it means, and what it is without a value.

These models are the one source of the JSON Schema and of the tables in docs/scenario.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from memvirt.size import format_size, parse_size
from memvirt.vmkernel.options import MemoryOptions


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


MOST_SECONDS = 1e9  # of virtual time: its nanoseconds must fit 63 bits
_TEXT = r"^[^\x00]*$"
# Names of files, and text for guests: they end at the first NUL.
_Text = Annotated[str, Field(pattern=_TEXT)]


class ResizeOptions(_Model):
    """A change of machine memory while the host runs."""

    at: float = Field(ge=0, le=MOST_SECONDS, description="virtual seconds")
    memory: Size = Field(description="machine memory from then on, at most the machine's")


class MachineOptions(_Model):
    """The host: its memory, its swap, and how it manages them."""

    memory: Size = Field(description='machine memory, such as "256M"')
    scatter_seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="hand out frames in a pseudo-random order with this seed"
    )
    swap: Size | None = Field(
        default=None, description="swap space for all VMs; without it, as much as they need"
    )
    state_directory: _Text | None = Field(
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
    cgroup: _Text = Field(
        default="", description="control group whose memory limit bounds machine memory, too"
    )
    balloon: bool = Field(default=True, description="use balloons")
    pageout: bool = Field(default=True, description="send pages to the host's swap or zram")
    cgroup_reclaim: bool = Field(
        default=True,
        description="take pages through a VM's control group where pageout falls short",
    )
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

    qmp: _Text = Field(default="", description="path of its QMP socket")
    domain: _Text = Field(default="", description="its libvirt domain")
    command_line: Annotated[str, BeforeValidator(_pattern)] = Field(
        default="", description="regular expression, searched in QEMU's arguments"
    )
    cgroup: _Text = Field(
        default="", description="its control group: the kernel's own reclaim then spares its "
        "reservation, and it is a lever of reclaim",
    )  # fmt: skip


class RemapOptions(_Model):
    """What is done to the guests' pages while they run, beyond what management needs."""

    every_ms: float = Field(
        default=20, ge=0.001, le=1e9, description="interval, in virtual milliseconds"
    )
    move: float = Field(default=0, ge=0, le=1, description="part of the pages to move each time")
    unmap: float = Field(default=0, ge=0, le=1, description="part of the pages to unmap each time")
    share: bool = Field(default=False, description="share pages of equal content inside each VM")
    seed: int = Field(default=1, ge=0, description="seed of the choice of pages")


_NAME = r"^[^\x00-\x1f\x7f]*$"  # it is printed in tables and heads columns of CSV


class VmOptions(_Model):
    """One VM, or ``count`` alike."""

    name: str = Field(
        min_length=1, max_length=100, pattern=_NAME,
        description="its name; with count, NAME-1, NAME-2, ...",
    )  # fmt: skip
    image: _Text = Field(default=BUNDLED_IMAGE, description='kernel image: a path, or "bundled"')
    memory: Size = Field(description='guest-physical memory, such as "64M"')
    paging: Literal["shadow", "nested"] = Field(
        default="nested", description="shadow or nested page tables"
    )
    append: _Text = Field(default="", description="kernel command line")
    initrd: _Text | None = Field(default=None, description="initial RAM disk: a path")
    count: int = Field(default=1, ge=1, le=1000, description="number of such VMs")
    shares: Literal["low", "normal", "high"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default="normal",
        description="weight of its claim on memory: low, normal or high (5, 10 or 20 a MiB of "
        "memory), or the number of all its shares",
    )
    reservation: SizeOrNothing = Field(default=0, description="machine memory it always has")
    limit: Size | None = Field(default=None, description="most machine memory it may have")
    group: str = Field(default="", description="VMs of one group may share pages")
    start: float = Field(
        default=0, ge=0, le=MOST_SECONDS, description="virtual seconds until it is powered on"
    )
    live: LiveVmOptions = Field(
        default=LiveVmOptions(), description="for memvirt manage: how it is found on this host"
    )

    @model_validator(mode="after")
    def _amounts_fit(self) -> VmOptions:
        if self.reservation > self.memory:
            raise Misfit("reservation", self.reservation, "memory", self.memory)
        if self.limit is not None and self.reservation > self.limit:
            raise Misfit("reservation", self.reservation, "limit", self.limit)
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
    timeout: float = Field(
        default=600, gt=0, le=MOST_SECONDS, description="seconds of host time for the whole run"
    )
    check: bool = Field(default=True, description="run the consistency checker as it goes")


class Misfit(ValueError):
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
