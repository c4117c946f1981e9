# SPDX-License-Identifier: Apache-2.0
"""What is asked of a plan: hosts, growth, failures, what-ifs, and what counts as fitting."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import IntEnum

from memvirt.errors import MemvirtError
from memvirt.size import SizeError, parse_size

from .assumptions import SHARING_ON, Range, Unknowns, parse_range
from .policy import PAGE_BYTES, MemoryOptions
from .units import AmountError

__all__ = ["Allow", "Question", "QuestionError", "apply_what_if", "parse_growth"]


class Allow(IntEnum):
    """What may happen to VMs that are said to fit."""

    NONE = 0  # memory enough at all times
    BALLOON = 1  # as long as no VM has less than it actively uses
    COMPRESS = 2  # the same
    SWAP = 3  # anything, as long as the host can go on at all


class QuestionError(MemvirtError):
    """A question that cannot be asked so; the message is one line."""


@dataclass(frozen=True)
class Question:
    """Amounts are pages. Without ``host_memory`` the hosts of the data are taken, as they are.

    ``hosts``: place the VMs on so many; ``fit``: on as few as can be found.
    """

    host_memory: int | None = None
    hosts: int | None = None
    fit: bool = False
    grow: float = 0.0
    failover: int = 0
    allow: Allow = Allow.NONE
    options: MemoryOptions = field(default_factory=MemoryOptions)
    unknowns: Unknowns = field(default_factory=Unknowns)
    balloons: bool = True
    extra_memory: int = 0  # beside what a host has
    draws: int = 16
    seed: int = 1

    def check(self) -> None:
        """Raises QuestionError for what contradicts itself."""
        if self.fit and self.hosts is not None:
            raise QuestionError("--fit finds the number of hosts; leave --hosts out")
        if (self.fit or self.hosts is not None) and self.host_memory is None:
            raise QuestionError("--fit and --hosts place VMs on hosts of one size; add --host 512G")


def parse_growth(text: str) -> float:
    """ "20%" or "0.2" as a part; shrinking is "-10%". Raises QuestionError."""
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*", text, re.ASCII)
    if match is None:
        raise QuestionError(f'--grow: "{text}" is no growth; write 20%')
    grow = float(match[1]) / (100 if match[2] else 1)
    if not -1 < grow <= 10:
        raise QuestionError(f"--grow: {text} is not between -100% and 1000%; write 20%")
    return grow


def _memory(question: Question, value: str) -> Question:
    relative = value[:1] in "+-"
    size = parse_size(value.lstrip("+-"), what="--what-if memory") // PAGE_BYTES
    if relative:
        return replace(question, extra_memory=size if value[0] == "+" else -size)
    return replace(question, host_memory=size)


def _sharing(question: Question, value: str) -> Question:
    if value in ("on", "off"):
        shared = SHARING_ON if value == "on" else Range(0, 0)
    else:
        shared = parse_range(value, "--what-if sharing")
    return replace(question, unknowns=replace(question.unknowns, shared=shared))


def _compression(question: Question, value: str) -> Question:
    on = _switch("compression", value)
    options = question.options.model_copy(update={"mem_zip_enable": on})
    return replace(question, options=options)


def _balloon(question: Question, value: str) -> Question:
    return replace(question, balloons=_switch("balloon", value))


def _idle_tax(question: Question, value: str) -> Question:
    try:
        tax = float(value.rstrip("%"))
    except ValueError:
        tax = -1
    if not 0 <= tax <= 99:
        raise QuestionError(f"--what-if idle-tax: {value} is not between 0 and 99 percent")
    return replace(question, options=question.options.model_copy(update={"idle_tax": tax}))


def _grow(question: Question, value: str) -> Question:
    return replace(question, grow=parse_growth(value))


def _switch(what: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise QuestionError(f"--what-if {what}: {value} is neither on nor off")
    return value == "on"


_WHAT_IFS = {
    "memory": (_memory, "memory=+64G or memory=768G"),
    "sharing": (_sharing, "sharing=on, sharing=off or sharing=10%..20%"),
    "compression": (_compression, "compression=off"),
    "balloon": (_balloon, "balloon=off"),
    "idle-tax": (_idle_tax, "idle-tax=0"),
    "grow": (_grow, "grow=20%"),
}


def apply_what_if(question: Question, text: str) -> Question:
    """The question with a change such as "memory=+64G" (several: separated by commas).

    Raises QuestionError.
    """
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in _WHAT_IFS or not value:
            examples = "; ".join(example for _, example in _WHAT_IFS.values())
            raise QuestionError(f'--what-if: "{part.strip()}" is no change; there are {examples}')
        try:
            question = _WHAT_IFS[key][0](question, value.strip())
        except (SizeError, AmountError) as error:
            raise QuestionError(str(error)) from error
    return question
