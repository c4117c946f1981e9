# SPDX-License-Identifier: Apache-2.0
"""Tasks that never end, on two workers: ``python -m tests.plan.endless FOLDER``.

Each task leaves a file named as its process in FOLDER; for tests that interrupt.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from memvirt.cli.errors import sigterm_ends, user_errors
from memvirt.plan.executor import executor


def endless(folder: Path) -> None:
    """Never returns."""
    (folder / f"worker-{os.getpid()}").touch()
    while True:
        time.sleep(3600)


def main(folder: Path) -> None:
    # A shell that runs tests in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        user_errors(), sigterm_ends(), tempfile.TemporaryDirectory(dir=folder),
        executor(workers=2) as where,
    ):  # fmt: skip
        where.map(endless, [folder] * 8, lambda done, total: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
