# SPDX-License-Identifier: Apache-2.0
"""What batch files of our own VMs and of live ones share: counter paths and time stamps."""

from __future__ import annotations

from datetime import datetime, timedelta

HEADING = "(PDH-CSV 4.0) (UTC)(0)"
TIME_FORMAT = "%m/%d/%Y %H:%M:%S"
SAMPLE_TIME = "Sample Time Seconds"
"""The host's counter that tells samples of one second apart: seconds since the start."""

# Readers of counter paths split at these; Windows' performance data helper replaces the parentheses
# of instance names in the same way. Names that become equal differ in their number.
_INSTANCE = str.maketrans({"(": "[", ")": "]", "\\": "_", '"': "'", ",": ";"})


def group_path(host: str, number: int, name: str) -> str:
    r"""The path of a VM's counters, ``\\host\Group Memory(number:name)``."""
    return f"\\\\{host}\\Group Memory({number}:{name.translate(_INSTANCE)})"


def time_cells(start: datetime, time_ns: int) -> tuple[str, str]:
    """esxtop's time stamp, in whole seconds, and the value of SAMPLE_TIME."""
    seconds = time_ns / 1e9
    return (start + timedelta(seconds=seconds)).strftime(TIME_FORMAT), f"{seconds:.3f}"
