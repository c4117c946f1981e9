# SPDX-License-Identifier: Apache-2.0
"""The knobs of memory management, under the names ESXi gives them as advanced settings (``Mem.*``).

Names without a counterpart in ESXi say so. Times are virtual: a host whose guests live for seconds
wants much shorter periods than ESXi's defaults, which are the defaults here too.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .policies import ALLOCATION, RECLAIM, VICTIMS
from .registry import RegisteredName

__all__ = ["MemoryOptions", "Salting"]


class Salting(IntEnum):
    """``Mem.ShareForceSalting``: which VMs may share pages of equal content with each other."""

    NONE = 0  # all VMs
    GROUP_ELSE_ALL = 1  # VMs of one group; those without a group among themselves
    GROUP_ELSE_VM = 2  # VMs of one group; one without a group only with itself


class MemoryOptions(BaseModel):
    """``Mem.*`` of a host."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    idle_tax: float = Field(
        default=75, ge=0, le=99, alias="IdleTax", description="idle memory tax, in percent"
    )
    sample_period: float = Field(
        default=60,
        ge=0.001,
        le=1e9,
        alias="SamplePeriod",
        description="working-set sampling, in seconds",
    )
    sample_pages: int = Field(
        default=100, ge=1, le=100_000, alias="SamplePages",
        description="pages sampled in a period (fixed in ESXi)",
    )  # fmt: skip
    balance_period: float = Field(
        default=15, ge=0.001, le=1e9, alias="BalancePeriod",
        description="seconds between two computations of the targets",
    )  # fmt: skip
    ctl_max_percent: float = Field(
        default=65, ge=0, le=75, alias="CtlMaxPercent",
        description="most of a VM's memory the balloon may take, in percent",
    )  # fmt: skip
    share_scan_time: float = Field(
        default=60, ge=0, le=1e9, alias="ShareScanTime",
        description="minutes in which a VM's memory is scanned once for sharing; 0: no sharing",
    )  # fmt: skip
    share_rate_max: int = Field(
        default=4_000_000, ge=0, le=10**9, alias="ShareRateMax",
        description="most pages scanned for sharing in a second, all VMs together",
    )  # fmt: skip
    share_force_salting: Salting = Field(
        default=Salting.GROUP_ELSE_VM, alias="ShareForceSalting",
        description="0: all VMs share; 1: VMs share inside their group, those without a group "
        "among themselves; 2: VMs share inside their group only",
    )  # fmt: skip
    min_free_pct: float = Field(
        default=0, ge=0, le=50, alias="MinFreePct",
        description="minimum free memory in percent of managed memory; 0: the sliding scale",
    )  # fmt: skip
    high_pct: float = Field(
        default=400, ge=100, le=1000, alias="HighPct",
        description="border of state high, in percent of minimum free memory (fixed in ESXi)",
    )  # fmt: skip
    mem_zip_enable: bool = Field(
        default=True, alias="MemZipEnable", description="compress pages on their way to swap"
    )
    mem_zip_max_pct: float = Field(
        default=10, ge=0, le=50, alias="MemZipMaxPct",
        description="largest compression cache of a VM, in percent of its memory",
    )  # fmt: skip
    mem_zip_codec: Literal["lz4", "zstd"] = Field(
        default="lz4", alias="MemZipCodec", description="compressor (not an ESXi setting)"
    )
    reclaim: tuple[Annotated[str, RegisteredName(RECLAIM)], ...] = Field(
        default=("balloon", "discard", "compress", "swap"), alias="Reclaim",
        description="how memory is reclaimed: mechanisms, and where evicted pages may go, in order "
        "(not an ESXi setting)",
    )  # fmt: skip
    swap_victims: Annotated[str, RegisteredName(VICTIMS)] = Field(
        default="idle", alias="SwapVictims",
        description="which pages are swapped: random, or seen idle first (not an ESXi setting)",
    )  # fmt: skip
    allocation: Annotated[str, RegisteredName(ALLOCATION)] = Field(
        default="shares", alias="Allocation",
        description="who is entitled to how much: by shares and idle memory tax, or by configured "
        "size alone (not an ESXi setting)",
    )  # fmt: skip
    swap_read_us: float = Field(
        default=100, ge=0, le=1e6, alias="SwapReadUs",
        description="virtual microseconds a guest waits for a page from swap "
        "(not an ESXi setting)",
    )  # fmt: skip
    unzip_us: float = Field(
        default=5, ge=0, le=1e6, alias="UnzipUs",
        description="virtual microseconds a guest waits for a compressed page "
        "(not an ESXi setting)",
    )  # fmt: skip
    large_pages: bool = Field(
        default=True, alias="AllocGuestLargePage",
        description="back memory by large pages (nested paging) while there is plenty of it",
    )  # fmt: skip
    event_log: int = Field(
        default=10_000, ge=1, alias="EventLog",
        description="decisions kept in the event log (not an ESXi setting)",
    )  # fmt: skip

    @field_validator("reclaim")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"should name '{twice[0]}' once")
        return names
