# SPDX-License-Identifier: Apache-2.0
"""What the VMkernel keeps of each VM that is powered on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from .activity import Activity
from .admission import VmSettings
from .allocation import Claim
from .protocols import GuestMemory, MemoryUsage

# By pages a PPN of the VM stands for (``GuestMemory.granule``), of which none can be had in part.
MINIMUM_GRANT = 64  # frames: fewer would make a VM stop after a few page faults
MAXIMUM_GRANT = 1024  # frames: as many as a VM's reserve holds
NEEDED_TO_RUN = 32  # frames without which a VM may not finish a single page fault


class Condition(StrEnum):
    """Whether a VM can go on."""

    RUNNING = "running"
    WAITING = "waiting"  # for frames it will get
    BLOCKED = "blocked"  # above its target on a host that is low on memory
    PAUSED = "paused"  # cannot go on until somebody helps; the reason says what is wrong
    THROTTLED = "throttled"  # sits out rounds of its host, whose time its quanta use up


@dataclass(eq=False)
class ManagedVm:
    """One VM: its memory, what it was granted, and where policy stands with it."""

    guest: GuestMemory
    settings: VmSettings
    activity: Activity
    overhead_max: int
    cache_max: int
    balloon_max: int
    usage: MemoryUsage
    random: np.random.Generator
    swap_reserved: int  # pages of the host's swap that are promised to it
    target: float = 0.0
    balloon_target: int = 0
    balloon_set: int | None = None  # the balloon's target, if somebody has taken it from policy
    swap_target: int = 0
    condition: Condition = Condition.RUNNING
    reason: str = ""
    held: bool = False  # paused by somebody, until that one resumes it
    throttled: str = ""  # why its host does not let it run for now
    over_limit: bool = False  # its limit was lowered: what lies above it has to go
    waiting: bool = False  # stopped in the middle of a quantum for want of frames
    granted: int = 0  # frames in the reserve when it last started to run
    used: int = 0  # frames it took of them
    minimum_grant: int = MINIMUM_GRANT
    maximum_grant: int = MAXIMUM_GRANT
    needed_to_run: int = NEEDED_TO_RUN
    _active: float | None = None  # the estimate, if it was asked for since the VM last ran

    _claim: Claim | None = None
    _claim_of: tuple[VmSettings, MemoryUsage, int, float] | None = None

    def __post_init__(self) -> None:
        granule = self.guest.granule
        self.minimum_grant = max(MINIMUM_GRANT, granule)
        self.maximum_grant = MAXIMUM_GRANT * granule
        self.needed_to_run = max(NEEDED_TO_RUN, granule)

    @property
    def name(self) -> str:
        return self.settings.name

    def refresh(self) -> None:
        """Look at the VM anew, after something has changed its memory."""
        self.usage = self.guest.usage()
        self._active = None

    @property
    def active(self) -> float:
        """The active fraction of its memory, as estimated at this quiescent point."""
        if self._active is None:
            self._active = self.activity.estimate
        return self._active

    def end_sampling_period(self) -> None:
        """Fold the sample into the estimate, and draw the next one."""
        self.activity.end_period()
        self._active = None

    @property
    def reserve(self) -> int:
        """Frames granted to it and not used yet."""
        frames = self.guest.frames
        return 0 if frames is None else frames.reserve

    @property
    def balloon_size(self) -> int:
        balloon = self.guest.balloon
        return balloon.size if balloon is not None else 0

    @property
    def has_driver(self) -> bool:
        balloon = self.guest.balloon
        return balloon is not None and balloon.connected

    @property
    def room(self) -> int:
        """Frames it may still get before it reaches its limit, those in its reserve included."""
        return int(self.settings.maximum - self.usage.consumed)

    @property
    def claim(self) -> Claim:
        """What allocation goes by; asked for several times a round, and made anew on a change."""
        settings, usage, balloon = self.settings, self.usage, self.balloon_size
        claim, of = self._claim, (settings, usage, balloon, self.active)
        if claim is None or self._claim_of != of:
            self._claim_of = of
            claim = self._claim = Claim(
                settings.shares,
                self.active,
                settings.memory,
                settings.reservation,
                settings.maximum,
                usage.consumed,
                usage.in_use + balloon,
            )
        return claim
