# SPDX-License-Identifier: Apache-2.0
"""The histogram of latencies against sorting."""

from __future__ import annotations

import random

from memvirt.live.pager.latency import BUCKETS, bucket, lower_bound, percentile


def test_buckets_are_in_order_and_hold_their_lower_bound() -> None:
    assert [bucket(lower_bound(number)) for number in range(BUCKETS)] == list(range(BUCKETS))
    assert bucket(1 << 40) == BUCKETS - 1


def test_percentiles_are_near_those_of_the_sorted_list() -> None:
    choose = random.Random(1)
    latencies = [int(choose.lognormvariate(4, 2)) for _ in range(5000)]
    histogram = [0] * BUCKETS
    for latency in latencies:
        histogram[bucket(latency)] += 1
    latencies.sort()
    for fraction in (0.01, 0.5, 0.9, 0.99):
        right = latencies[int(fraction * len(latencies)) - 1]
        found = percentile(histogram, fraction)
        assert found is not None
        assert right * 15 / 16 - 1 <= found <= right


def test_without_faults_there_is_no_percentile() -> None:
    assert percentile([0] * BUCKETS, 0.5) is None
