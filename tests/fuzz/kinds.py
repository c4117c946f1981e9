# SPDX-License-Identifier: Apache-2.0
"""The kinds of input: for each, who makes one from random numbers, and who runs it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from .case import Case, Verdict
from .command_lines import make_command, run_command
from .data_files import make_dump, make_record, run_dump, run_record
from .files import FILES
from .guests import IMAGES, make_guest, make_neighbours, run_guest, run_neighbours
from .live_inputs import make_live, run_live

Maker = Callable[[random.Random], Case]
Runner = Callable[[Case], Verdict]

KINDS: dict[str, tuple[Maker, Runner]] = {
    **FILES,
    "dump": (make_dump, run_dump),
    "record": (make_record, run_record),
    "live": (make_live, run_live),
    "command": (make_command, run_command),
    **{kind: (partial(make_guest, kind), run_guest) for kind in IMAGES},
    "neighbours": (make_neighbours, run_neighbours),
}


def make(kind: str, seed: str) -> Case:
    """The case of this seed: the same in every run."""
    return KINDS[kind][0](random.Random(f"{kind} {seed}"))


def run(case: Case) -> Verdict:
    """What comes of ``case``. An exception is memvirt's failure, or the fuzzer's own."""
    return KINDS[case.kind][1](case)
