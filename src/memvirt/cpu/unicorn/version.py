# SPDX-License-Identifier: Apache-2.0
"""Which engine is installed, and whether memvirt has been verified with it.

memvirt uses registers and a TLB inside the engine that no API hands out. Where they lie is verified
at start (``registers``), but how the engine behaves around them is not: guests panic on Unicorn
2.1.2 and 2.1.3 although every register is found. So a version is used only after the whole test
suite has passed on it. Its number is asked of the library itself: the Python package says 2.1.0 for
2.1.1.
"""

from __future__ import annotations

import unicorn

from memvirt.cpu.processor import ProcessorError

VERIFIED_VERSION = (2, 1, 4)


class EngineLayoutError(ProcessorError):
    """The installed Unicorn is not one that memvirt can use; the message says why."""


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def engine_version() -> tuple[int, int, int]:
    """Major, minor and patch version of the library that is loaded."""
    word = int(unicorn.uc_version()[2])  # UC_VERSION: a byte each of major, minor, patch, extra
    return word >> 24 & 0xFF, word >> 16 & 0xFF, word >> 8 & 0xFF


def check_engine_version() -> None:
    """Raise EngineLayoutError for a version that was not verified."""
    version = engine_version()
    if version != VERIFIED_VERSION:
        wanted = _text(VERIFIED_VERSION)
        raise EngineLayoutError(
            f"unicorn {_text(version)} is installed, and memvirt has been verified with {wanted} "
            f"only: pip install unicorn=={wanted}"
        )
