# SPDX-License-Identifier: Apache-2.0
"""What a Linux kernel says of its panic."""

from __future__ import annotations

_MARK = b"Kernel panic - not syncing: "
_REPORT_BYTES = 8192  # a panic's report is shorter: what lies before it is older news


def panic_message(console: bytes | bytearray) -> str:
    """The message of a panic at the end of a console's output, or "" if there is none."""
    report = bytes(console[-_REPORT_BYTES:])
    start = report.rfind(_MARK)
    if start < 0:
        return ""
    line = report[start + len(_MARK) :].split(b"\n")[0]
    return line.decode("ascii", "replace").strip() or "without a message"
