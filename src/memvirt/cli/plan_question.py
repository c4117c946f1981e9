# SPDX-License-Identifier: Apache-2.0
"""The question of ``memvirt plan``, from its options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from memvirt.input_file import InputFileError, read_input_text
from memvirt.plan.assumptions import Range, Unknowns, parse_range
from memvirt.plan.policy import PAGE_BYTES
from memvirt.plan.question import Allow, Question, QuestionError, parse_growth
from memvirt.size import parse_size


def make_question(
    *, host: str | None, hosts: int | None, fit: bool, grow: str, failover: int, allow: str,
    in_use: str | None, active: str | None, compressible: str | None, sharing: str | None,
    measured: Path | None, draws: int, seed: int,
) -> Question:  # fmt: skip
    """Raises QuestionError, SizeError or AmountError."""
    unknowns = Unknowns() if measured is None else _measured(measured, Unknowns())
    given = {"in_use": in_use, "active": active, "compressible": compressible, "shared": sharing}
    for name, text in given.items():
        if text is not None:
            option = "--" + name.replace("_", "-").replace("shared", "sharing")
            unknowns = replace(unknowns, **{name: parse_range(text, option)})
    question = Question(
        host_memory=None if host is None else parse_size(host, what="--host") // PAGE_BYTES,
        hosts=hosts, fit=fit, grow=parse_growth(grow), failover=failover,
        allow=Allow[allow.upper()], unknowns=unknowns, draws=draws, seed=seed,
    )  # fmt: skip
    question.check()
    return question


def _measured(path: Path, unknowns: Unknowns) -> Unknowns:
    """Sharing and compression as an analysis of dumps has found them."""
    try:
        found = json.loads(read_input_text(path))
        shared = float(found["savings"]["sharing"]) / max(float(found["in_use_pages"]), 1)
        compressible = float(found["compressible_part"])
        return replace(
            unknowns, shared=Range(0.0, shared), compressible=Range(compressible, compressible)
        )
    except InputFileError as error:
        raise QuestionError(f"--measured {error}") from error
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
        raise QuestionError(
            f"--measured {path}: is no output of memvirt analyze --json ({error!r})"
        ) from error
