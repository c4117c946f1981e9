# SPDX-License-Identifier: Apache-2.0
"""Scenarios: which VMs run on which machine, as a TOML file.

A mistake is reported with the file, the line, the key, and what would be right.
"""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

from pydantic import ValidationError

from memvirt.errors import MemvirtError
from memvirt.input_file import InputFileError, read_input_text
from memvirt.notebook import one_line
from memvirt.scenario.toml_lines import line_of

from .keys import BUNDLED_IMAGE, Scenario, names_of
from .mistakes import explain, location_of

__all__ = [
    "Scenario",
    "ScenarioError",
    "bundled_scenarios",
    "find_scenario",
    "load_scenario",
    "parse_scenario",
]


class ScenarioError(MemvirtError):
    """A scenario file that cannot be used; the message is one line."""


# Bundled scenarios ----------------------------------------------------------------------------

_FOLDER = Path(__file__).parent / "bundled"
BUNDLED_SCENARIO = _FOLDER / "default.toml"


def bundled_scenarios() -> dict[str, str]:
    """Names of the bundled scenarios, each with the first sentence of its comment."""
    found = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        comment = " ".join(line.removeprefix("#").strip() for line in _leading_comment(lines))
        found[path.stem] = comment.split(". ")[0].removesuffix(".")
    return found


def _leading_comment(lines: list[str]) -> list[str]:
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def find_scenario(name: str) -> Path:
    """The file of a scenario: a path, or the name of a bundled one. Raises ScenarioError."""
    path = Path(name)
    with contextlib.suppress(ValueError):  # a NUL
        if path.exists():
            return path
    if path.suffix == ".toml":
        return path
    bundled = bundled_scenarios()
    if name in bundled:
        return _FOLDER / f"{name}.toml"
    known = ", ".join(bundled)
    raise ScenarioError(
        f"{one_line(name)}: no such file, and no bundled scenario; bundled are {known}"
    )


# Reading ---------------------------------------------------------------------------------------


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from TOML text; ``name`` is used in messages. Raises ScenarioError."""
    try:
        scenario = Scenario.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        location = location_of(first)
        line = line_of(text, location)
        raise ScenarioError(one_line(f"{name}:{line}: {explain(first, location)}", 2000)) from error
    except RecursionError as error:
        raise ScenarioError(f"{name}: lists and tables are nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        raise ScenarioError(one_line(f"{name}: {error}", 2000)) from error
    names: set[str] = set()
    for index, vm in enumerate(scenario.vm):
        for vm_name in names_of(vm):
            if vm_name in names:
                line = line_of(text, ("vm", index, "name"))
                raise ScenarioError(f'{name}:{line}: "vm.name": there is a VM {vm_name} already')
            names.add(vm_name)
    return scenario


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in a file, whose relative paths start at that file. Raises ScenarioError."""
    try:
        text = read_input_text(path)
    except InputFileError as error:
        shown = one_line(str(path))
        reason = str(error).removeprefix(f"{shown}: ")
        raise ScenarioError(f"{shown}: cannot be read: {reason}") from error
    return _with_paths_from(parse_scenario(text, str(path)), Path(path).absolute().parent)


def _with_paths_from(scenario: Scenario, folder: Path) -> Scenario:
    def absolute(name: str | None) -> str | None:
        return name if name in (None, BUNDLED_IMAGE) else str(folder / str(name))

    vms = tuple(
        vm.model_copy(update={"image": absolute(vm.image), "initrd": absolute(vm.initrd)})
        for vm in scenario.vm
    )
    directory = absolute(scenario.machine.state_directory)
    machine = scenario.machine.model_copy(update={"state_directory": directory})
    return scenario.model_copy(update={"vm": vms, "machine": machine})
