# SPDX-License-Identifier: Apache-2.0
"""Idle page tracking: which of a set of frames are touched during an interval.

Source: Documentation/admin-guide/mm/idle_page_tracking.rst. A bit for each frame: writing 1 marks
it idle, reading asks all its mappings, a hypervisor's second-level tables included, whether it is
still idle. Frames of no process's memory cannot be marked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from .errors import KernelFeatureMissing, LiveError

BITMAP = Path("/sys/kernel/mm/page_idle/bitmap")


def idle_pages_problem(bitmap: Path = BITMAP) -> str:
    """Why idle page tracking cannot be used here; "" if it can."""
    if not bitmap.exists():
        return "this kernel has no idle page tracking (CONFIG_IDLE_PAGE_TRACKING)"
    return "" if os.access(bitmap, os.R_OK | os.W_OK) else "idle page tracking needs root"


class IdlePages:
    """The kernel's bitmap of idle frames. Others may use it too; a frame they mark is marked."""

    def __init__(self, bitmap: Path = BITMAP) -> None:
        if problem := idle_pages_problem(bitmap):
            raise KernelFeatureMissing(problem)
        self._bitmap = bitmap
        self._interrupted = threading.Event()

    def touched(self, mpns: Sequence[int], seconds: float) -> dict[int, bool]:
        """Watch frames for ``seconds`` and say of each whether it was touched. Frames that cannot
        be marked are left out."""
        words: dict[int, int] = {}
        for mpn in mpns:
            words[mpn // 64] = words.get(mpn // 64, 0) | 1 << mpn % 64
        descriptor = os.open(self._bitmap, os.O_RDWR | os.O_CLOEXEC)
        try:
            marked = {}
            for word, bits in words.items():
                os.pwrite(descriptor, bits.to_bytes(8, "little"), word * 8)
                marked[word] = bits & self._read(descriptor, word)
            if self._interrupted.wait(seconds):
                raise LiveError("idle page tracking was interrupted")
            idle = {word: self._read(descriptor, word) for word in words}
        finally:
            os.close(descriptor)
        return {
            mpn: not idle[mpn // 64] >> mpn % 64 & 1
            for mpn in mpns
            if marked[mpn // 64] >> mpn % 64 & 1
        }

    @staticmethod
    def _read(descriptor: int, word: int) -> int:
        return int.from_bytes(os.pread(descriptor, 8, word * 8), "little")

    def cpu_seconds(self) -> float:
        """Processor time outside of this process: none."""
        return 0.0

    def interrupt(self) -> None:
        """Make a ``touched`` that waits in another thread end, with an error."""
        self._interrupted.set()

    def close(self) -> None:
        """Nothing to give back: marks end with the next access."""
