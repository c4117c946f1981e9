# SPDX-License-Identifier: Apache-2.0
"""Help, versions and the schema are there at once: nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import memvirt

_PROGRAM = """
import sys
from memvirt.cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
HEAVY = {"numpy", "numba", "pyarrow", "polars", "pydantic", "unicorn"}
print("\\nheavy:", *sorted(HEAVY & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["run", "--help"], ["boot", "--help"], ["schema"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_public_names_are_imported_when_first_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, memvirt; print('numba' in sys.modules, dir(memvirt))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("False ")
    for name in memvirt.__all__:
        assert f"'{name}'" in done.stdout
        assert getattr(memvirt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = memvirt.Nothing
