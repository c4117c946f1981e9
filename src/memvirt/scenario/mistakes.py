# SPDX-License-Identifier: Apache-2.0
"""A mistake in a scenario file: where it is, and what would be right, in the words of the file."""

from __future__ import annotations

import difflib
from typing import Any

from memvirt.scenario.toml_lines import Location
from memvirt.vmkernel.options import MemoryOptions

from .keys import (
    LiveOptions,
    LiveVmOptions,
    MachineOptions,
    Misfit,
    RemapOptions,
    ResizeOptions,
    Scenario,
    VmOptions,
)


def _model_at(location: Location) -> Any:
    """The model whose keys stand at ``location``."""
    field = {
        "machine": MachineOptions, "resize": ResizeOptions, "Mem": MemoryOptions,
        "remap": RemapOptions, "vm": VmOptions,
    }  # fmt: skip
    model: Any = Scenario
    for part in location:
        if part == "live":
            model = LiveVmOptions if model is VmOptions else LiveOptions
        model = field.get(str(part), model)
    return model


def _keys(model: Any) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def explain(error: Any, location: Location) -> str:
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    if error["type"] == "extra_forbidden":
        known = _keys(_model_at(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        return f'unknown key "{key}"{hint}; known here: {", ".join(known)}'
    if error["type"] == "missing":
        return f'"{key}" is missing'
    if error["type"] == "tuple_type":
        return f'"{key}": should be a list of tables, each headed [[{key}]]'
    if error["type"] == "string_pattern_mismatch":
        what = "control characters" if key == "vm.name" else "NUL character"
        return f'"{key}": should have no {what}'
    if key == "vm.shares":
        return '"vm.shares": should be "low", "normal", "high" or a number of at least 1'
    message = error["msg"]
    for prefix in ("Value error, ", "Input ", "String "):
        message = message.removeprefix(prefix)
    return f'"{key}": {message}'


def location_of(error: Any) -> Location:
    """Where an error is, in terms of the file."""
    location: Location = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Misfit):
        return (*location, cause.key)
    if len(location) > 3 and location[0] == "vm" and location[2] == "shares":
        return location[:3]  # which of the alternatives of a union failed says nothing
    return location
