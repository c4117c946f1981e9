# SPDX-License-Identifier: Apache-2.0
"""How much of its memory a VM uses: statistical sampling of its working set.

OSDI 2002 section 5.3: in each period a few random pages have their mappings taken back; the share
of them that is touched estimates the active fraction. Of three moving averages, a slow one, a fast
one, and the fast one with the running period's samples, the largest counts: a VM that becomes
active gets memory quickly, and one that becomes idle loses it slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from memvirt.address import PpnArray

from .protocols import GuestMemory
from .random_pages import FEW, distinct

SLOW_GAIN, FAST_GAIN = 0.125, 0.5


@dataclass
class Activity:
    """The estimate for one VM.

    A VM that has not been sampled yet, or whose accesses cannot be noticed, counts as fully active.
    """

    guest: GuestMemory
    pages: int  # sampled in a period
    random: np.random.Generator
    slow: float = 1.0
    fast: float = 1.0
    periods: int = 0
    _sample: PpnArray = field(default_factory=lambda: PpnArray(np.zeros(0, np.int64)))

    def touched_fraction(self) -> float:
        """Part of the running period's sample that has been touched so far."""
        size, sampling = self._sample.size, self.guest.sampling
        if size == 0 or sampling is None:
            return self.fast
        return 1 - int(np.count_nonzero(sampling.untouched(self._sample))) / size

    @property
    def next(self) -> float:
        """The fast average with what the running period has seen so far, if that is more."""
        return max(self.fast, self.fast + FAST_GAIN * (self.touched_fraction() - self.fast))

    @property
    def estimate(self) -> float:
        """The active fraction in force."""
        return max(self.slow, self.fast, self.next)

    def end_period(self) -> None:
        """Fold the period's sample into the averages, and draw the next one."""
        sampling = self.guest.sampling
        if sampling is None:
            return
        if self._sample.size:
            touched = self.touched_fraction()
            first = self.periods == 0
            self.slow = touched if first else self.slow + SLOW_GAIN * (touched - self.slow)
            self.fast = touched if first else self.fast + FAST_GAIN * (touched - self.fast)
            self.periods += 1
        pages = self.guest.pages
        if pages > FEW and pages >= 2 * self.pages:
            self._sample = distinct(pages, self.pages, self.random)
        else:
            count = min(self.pages, pages)
            self._sample = PpnArray(self.random.choice(pages, count, replace=False))
        sampling.begin_sample(self._sample)
