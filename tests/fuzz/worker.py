# SPDX-License-Identifier: Apache-2.0
"""The process that makes and runs cases, one after another; it may crash.

A line of standard input is a job: ``{"folder": F}`` runs the case in F again, with ``kind`` and
``seed`` it is made and written to F first. A line of standard output is its verdict.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .case import Case, Verdict


def _do(job: dict[str, Any]) -> Verdict:
    from . import kinds  # noqa: PLC0415 - what it imports takes seconds

    folder = Path(job["folder"])
    try:
        if "seed" in job:
            case = kinds.make(job["kind"], job["seed"])
            case.save(folder)
        else:
            case = Case.load(folder)
    except Exception as error:
        return Verdict(False, f"no case: {type(error).__name__}", traceback.format_exc())
    try:
        return kinds.run(case)
    except Exception as error:
        return Verdict(False, f"an exception: {type(error).__name__}", traceback.format_exc())


def main() -> None:
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a case prints is no verdict
    for line in sys.stdin:
        verdict = _do(json.loads(line))
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
