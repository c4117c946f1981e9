# SPDX-License-Identifier: Apache-2.0
"""A histogram of fault latencies in shared memory: exact to 1 us below 256 us, to 1/16 above."""

from __future__ import annotations

from collections.abc import Sequence

_LINEAR = 256  # buckets of 1 us
_STEPS = 16  # buckets for each doubling above
BUCKETS = 448  # the last one takes everything of 2^20 us and more


def bucket(microseconds: int) -> int:
    """The bucket of a latency."""
    if microseconds < _LINEAR:
        return microseconds if microseconds > 0 else 0
    doubling = microseconds.bit_length() - 9  # 256 has 9 bits
    step = (microseconds >> (doubling + 4)) & (_STEPS - 1)
    return min(_LINEAR + doubling * _STEPS + step, BUCKETS - 1)


def lower_bound(number: int) -> int:
    """The smallest latency of a bucket, in microseconds."""
    if number < _LINEAR:
        return number
    doubling, step = divmod(number - _LINEAR, _STEPS)
    return (_STEPS + step) << (doubling + 4)


def percentile(histogram: Sequence[int], fraction: float) -> int | None:
    """The latency that ``fraction`` of all faults do not exceed, in us; None without faults."""
    total = sum(histogram)
    if total == 0:
        return None
    seen = 0
    for number, count in enumerate(histogram):
        seen += count
        if seen >= fraction * total:
            return lower_bound(number)
    return lower_bound(len(histogram) - 1)
