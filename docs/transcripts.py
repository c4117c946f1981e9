# SPDX-License-Identifier: Apache-2.0
"""README's transcripts: what its commands print, run anew by `make docs`, compared by a test.

A block of output follows the comment ``<!-- transcript: COMMAND -->``; in a ``console`` block the
command stands in its first line too. A line ``...`` stands for any number of lines. Only the host's
times may differ from run to run: on memvirt's own build of the engine every count repeats. (The TLB
of the package index's build changes its size by the host's clock, and hides other CPUID bits.)
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(
    r"<!-- transcript: (?P<command>memvirt [^\n]*?) -->\n```(?:console|text)\n(?P<body>.*?)```",
    re.DOTALL,
)
_COMPILING = re.compile(r"^memvirt: compiling for this machine[^\n]*\n", re.MULTILINE)
_HOST_TIMES = re.compile(r"\d+\.\d+ s wall|(?<= in )\d+\.\d+ s(?=,)")


@dataclass(frozen=True, slots=True)
class Transcript:
    """A command, what the README says it prints, and where that stands in the text."""

    command: str
    output: str
    start: int
    end: int


def transcripts(text: str) -> Iterator[Transcript]:
    """The transcripts in ``text``, in order."""
    for block in _BLOCK.finditer(text):
        start = block.start("body")
        while text.startswith("$ ", start) or text[start:].split("\n", 1)[0].startswith("    "):
            start = text.index("\n", start) + 1
        yield Transcript(
            block["command"], text[start : block.end("body")], start, block.end("body")
        )


def run(command: str) -> str:
    """What a ``memvirt`` command prints: its output, then its messages.

    Not that it compiles: only the first command of a new source state says so.
    """
    arguments = [sys.executable, "-m", "memvirt", *shlex.split(command)[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return done.stdout + _COMPILING.sub("", done.stderr)


def timeless(text: str) -> str:
    """``text`` without the host's times, and without differences of line ends."""
    return _HOST_TIMES.sub("TIME", text.replace("\r\n", "\n")).rstrip()


def agree(said: str, printed: str) -> bool:
    """True if the README's text is what was printed."""
    pattern = "".join(
        r"(?:[^\n]*\n)*" if line == "..." else re.escape(line) + r"\n"
        for line in timeless(said).split("\n")
    )
    return re.fullmatch(pattern, timeless(printed) + "\n") is not None


def _write() -> None:
    if not IS_OWN_BUILD:
        sys.exit("transcripts are of memvirt's own build of the engine: run make engine")
    text = README.read_text(encoding="utf-8")
    for transcript in reversed(list(transcripts(text))):
        if "..." in transcript.output.split("\n"):
            continue  # what is left out is the author's choice: the test says if it is right
        printed = run(transcript.command).replace("\r\n", "\n").strip("\n") + "\n"
        text = text[: transcript.start] + printed + text[transcript.end :]
    README.write_text(text, encoding="utf-8")
    print(README)


if __name__ == "__main__":
    _write()
