# SPDX-License-Identifier: Apache-2.0
"""Scenarios made by a seed: VMs of both paging modes, overcommitted, with any mix of settings."""

from __future__ import annotations

import json
import random

from memvirt.scenario.scenario import Scenario, parse_scenario

_WORKLOADS = (
    "workload=fill percent=80 passes={n} seed={s}",
    "workload=fill percent=60 passes={n} seed={s} large=1",
    "workload=random percent=60 operations={n}00000 seed={s}",
    "workload=identical processes=6 pages=200 rounds={n}",
    "workload=processes processes=6 pages=48 rounds={n} seed={s}",
    "workload=churn rounds={n}0 seed={s}",
    "workload=idle percent=60 ticks={n}0 seed={s}",
    "workload=selfmod rounds={n}0 seed={s}",
)


def overcommitted(seed: int) -> tuple[Scenario, float]:
    """A scenario, and configured memory over machine memory: between 2 and 4."""
    rng = random.Random(seed)
    vms = []
    for number in range(rng.randint(2, 5)):
        mebibytes = rng.choice((8, 12, 16, 24))
        vm = {
            "name": f"vm{number}",
            "memory": f"{mebibytes}M",
            "paging": rng.choice(("shadow", "nested")),
            "append": rng.choice(_WORKLOADS).format(n=rng.randint(1, 3), s=rng.randint(1, 99)),
            "shares": rng.choice(("low", "normal", "high", 700)),
            "group": rng.choice(("", "a", "a", "b")),
            "start": rng.choice((0.0, 0.0, 0.03)),
        }
        if rng.random() < 0.3:
            vm["limit"] = f"{mebibytes * 3 // 4}M"
        if rng.random() < 0.3:
            vm["reservation"] = "2M"
        vms.append(vm)
    total = sum(int(vm["memory"][:-1]) for vm in vms)
    machine = max(int(total / rng.uniform(2, 4)), 6 + 3 * len(vms))
    knobs = {
        "ShareScanTime": rng.choice((0, 0.002, 0.02)),
        "ShareForceSalting": rng.choice((0, 1, 2)),
        "SamplePeriod": 0.02,
        "BalancePeriod": 0.03,
        "IdleTax": rng.choice((0, 50, 75)),
        "MemZipEnable": rng.choice((True, True, False)),
        "MemZipMaxPct": rng.choice((1, 10, 20)),
        "MemZipCodec": rng.choice(("lz4", "zstd")),
        "SwapVictims": rng.choice(("idle", "random")),
    }
    lines = [f"seed = {seed}", "timeout = 300", "[machine]", f'memory = "{machine}M"']
    lines += [f"scatter_seed = {seed}", f"quantum_ms = {rng.choice((2, 5, 10))}", "[machine.Mem]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in knobs.items()]
    for vm in vms:
        lines += ["[[vm]]", *(f"{key} = {json.dumps(value)}" for key, value in vm.items())]
    return parse_scenario("\n".join(lines) + "\n", f"scenario {seed}"), total / machine
