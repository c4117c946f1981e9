# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each compares with a peer in the same run and prints ratios. ``make bench``."""

import memvirt.cpu.unicorn  # noqa: F401  chooses the engine's build before unicorn is imported
