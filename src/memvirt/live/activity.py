# SPDX-License-Identifier: Apache-2.0
"""ESXi's moving averages of a live VM's activity.

OSDI 2002 section 5.3: a slow average, a fast one, and the largest of them counts. A period that
could not be measured changes nothing: it is no idle period.
"""

from __future__ import annotations

from dataclasses import dataclass

from memvirt.vmkernel.activity import FAST_GAIN, SLOW_GAIN


@dataclass(slots=True)
class LiveActivity:
    """The averages of one VM, fractions of its memory. None until a period has been measured."""

    slow: float | None = None
    fast: float | None = None
    periods: int = 0

    @property
    def estimate(self) -> float | None:
        """The active fraction in force."""
        if self.slow is None or self.fast is None:
            return None
        return max(self.slow, self.fast)

    def add(self, touched: float) -> None:
        """Fold the touched fraction of one period into the averages."""
        if self.slow is None or self.fast is None:
            self.slow = self.fast = touched
        else:
            self.slow += SLOW_GAIN * (touched - self.slow)
            self.fast += FAST_GAIN * (touched - self.fast)
        self.periods += 1
