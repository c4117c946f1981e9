# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: see ``--help``. Exit status 1 if a case failed."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import tempfile
from pathlib import Path

from .campaign import KEEP, Campaign, Worker
from .names import KIND_NAMES


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--cases", type=int, help="cases of each kind, instead of a time")
    parser.add_argument("--seed", type=int, help="the run's seed; without it, a new one")
    parser.add_argument("--kind", choices=KIND_NAMES, action="append", help="only this; repeatable")
    parser.add_argument("--keep", type=Path, default=KEEP, help=f"where failed inputs go ({KEEP})")
    parser.add_argument("--again", type=Path, nargs="+", help="run kept cases again")
    parser.add_argument("--case", help="run the case of this seed, such as 7-12, of one --kind")
    return parser.parse_args()


def _repeat(options: argparse.Namespace) -> int:
    failed = 0
    jobs = [{"folder": str(path)} for path in options.again or ()]
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="memvirt-fuzz-"))
        worker = stack.enter_context(Worker(Path(name) / "log"))
        if options.case:
            (kind,) = options.kind
            jobs = [{"kind": kind, "seed": options.case, "folder": str(Path(name) / "case")}]
        for job in jobs:
            verdict = worker.do(job)
            failed += not verdict.good
            mark = "good" if verdict.good else "FAILURE"
            print(f"{job['folder']}: {mark}: {verdict.outcome}\n{verdict.detail}")
    return 1 if failed else 0


def main() -> int:
    options = _arguments()
    if options.again or options.case:
        return _repeat(options)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}: python -m tests.fuzz --seed {seed}")
    campaign = Campaign(
        tuple(options.kind or KIND_NAMES), seed, keep=options.keep, cases=options.cases,
        seconds=None if options.cases is not None else options.seconds,
    )  # fmt: skip
    good = campaign.run(progress=sys.stderr.isatty())
    print(campaign.table())
    for kept in campaign.kept:
        print(f"kept: python -m tests.fuzz --again {kept}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
