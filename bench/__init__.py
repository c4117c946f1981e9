# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each compares with a peer in the same run and prints ratios. ``make bench``."""
