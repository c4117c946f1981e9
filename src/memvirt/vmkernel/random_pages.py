# SPDX-License-Identifier: Apache-2.0
"""Random pages of a VM by their numbers, at a cost that does not grow with the VM."""

from __future__ import annotations

import numpy as np

from memvirt.address import PpnArray

# PPNs of a VM that may be looked at all together: some tens of microseconds. VMs with more are
# sampled, and pages of theirs are chosen, by ``distinct`` numbers.
FEW = 1 << 16


def distinct(below: int, count: int, random: np.random.Generator) -> PpnArray:
    """``count`` random numbers below ``below``, all different: one in each of as many strata.

    ``count`` is at most ``below``. Where the first stratum begins is random, so that each number
    is as likely as another. A part estimated from them has no more variance than one from
    independent numbers (stratified sampling).
    """
    width = below // count
    parts = random.random(count + 1)
    start = int(parts[count] * below)
    numbers = (parts[:count] * width).astype(np.int64)
    numbers += np.arange(start, start + count * width, width)
    numbers %= below
    return PpnArray(numbers)
