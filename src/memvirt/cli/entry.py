# SPDX-License-Identifier: Apache-2.0
"""Where the ``memvirt`` command begins: Ctrl-C before anything else is imported is no traceback."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130  # as ``errors.INTERRUPTED``, which is not imported yet


def main() -> None:
    """Entry point of the console script."""
    try:
        from .main import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        print("memvirt: interrupted", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)
