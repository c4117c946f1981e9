# SPDX-License-Identifier: Apache-2.0
"""Pages of memory for tests: from nothing but zeroes to nothing but noise."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from memvirt.address import PAGE_BYTES
from memvirt.machine.content import Pages


def make_page(seed: int, noise: int) -> bytes:
    """A page of which ``noise`` bytes are random and the others repeat one."""
    rng = np.random.default_rng(seed)
    page = np.full(PAGE_BYTES, seed & 0xFF, np.uint8)
    page[:noise] = rng.integers(0, 256, noise, dtype=np.uint8)
    return page.tobytes()


def as_pages(contents: list[bytes]) -> Pages:
    return np.frombuffer(b"".join(contents), np.uint8).reshape(-1, PAGE_BYTES)


pages = st.builds(make_page, st.integers(0, 30), st.sampled_from([0, 200, 900, 1500, 2500, 4096]))
