# SPDX-License-Identifier: Apache-2.0
"""Fleets with the habits of real ones, from a seed: for the demonstration, benchmarks and tests.

Sizes follow what inventories show (many small VMs, few large ones, powers of two). Each VM keeps
most of what it once used (memory in use grows and stays), and its activity has a day, a week and
noise, with office hours for most, nights for batch jobs, and none for the idle ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memvirt.vmkernel.admission import VmSettings

from .fleet import SHARES_A_MIB, Fleet, PlannedVm, overhead_pages

_GIB_PAGES = 1 << 18
_SIZES = np.array([2, 4, 8, 16, 32, 64])  # GiB
_SHARES = np.array([0.22, 0.3, 0.24, 0.14, 0.07, 0.03])
_DAY = 86400.0
_HABITS = ("office", "night", "steady", "idle")
_PARTS = np.array([0.45, 0.15, 0.2, 0.2])

MONDAY = 1_704_067_200.0  # 2024-01-01 00:00 UTC


def generate(
    vms: int, *, days: float = 7, interval: float = 300, seed: int = 1, prefix: str = ""
) -> Fleet:
    """A fleet of ``vms`` VMs; equal for equal arguments."""
    random = np.random.default_rng((seed, vms))
    points = max(round(days * _DAY / interval), 1)
    clock = np.arange(points) * interval
    gib = random.choice(_SIZES, vms, p=_SHARES)
    habit = random.choice(len(_HABITS), vms, p=_PARTS)
    memory = gib * _GIB_PAGES
    active = memory[:, None] * _activity(habit, clock, random)
    start = random.uniform(0.35, 0.8, vms)
    drift = random.uniform(0, 0.15, vms) * (random.random(vms) < 0.3)
    kept = memory[:, None] * (start[:, None] + drift[:, None] * clock / max(clock[-1], 1))
    in_use = np.minimum(np.maximum(np.maximum.accumulate(active, axis=1), kept), memory[:, None])
    planned = []
    for row in range(vms):
        name = f"{prefix}{_HABITS[habit[row]]}-{row + 1:0{len(str(vms))}}"
        settings = VmSettings(name, int(memory[row]), SHARES_A_MIB * int(gib[row]) * 1024)
        planned.append(PlannedVm(settings, overhead_pages(float(memory[row]))))
    return Fleet(
        tuple(planned), in_use.astype(np.float32), active.astype(np.float32), MONDAY, interval
    )


def _activity(habit: Any, clock: Any, random: np.random.Generator) -> Any:
    """Active part of each VM's memory at each time."""
    vms, hour = habit.size, clock / 3600 % 24
    weekend = (clock / _DAY % 7) >= 5
    office = np.exp(-(((hour - 13) / 3.5) ** 2)) * np.where(weekend, 0.25, 1.0)
    night = ((hour >= 1) & (hour < 4)).astype(float)
    shapes = np.stack((office, night, np.ones_like(hour), np.zeros_like(hour)))
    base = random.uniform(0.02, 0.06, vms)[:, None]
    height = random.uniform(0.1, 0.45, vms)[:, None]
    noise = 1 + 0.15 * random.standard_normal((vms, clock.size))
    return np.clip((base + height * shapes[habit]) * noise, 0.005, 0.95)
