# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests that drive a model (Hypothesis' state machines).

A failure shows as soon as it is found: making the steps fewer takes Hypothesis minutes. It prints
them as they are, and what repeats them; ``MEMVIRT_SHRINK=1`` makes them as few as possible.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings


def model_settings(*, examples: int, steps: int) -> settings:
    """So many runs of at most so many steps each."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    if os.environ.get("MEMVIRT_SHRINK"):
        phases.append(Phase.shrink)
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=phases,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
