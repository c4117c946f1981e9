# SPDX-License-Identifier: Apache-2.0
"""The keys of scenario files for others: as JSON Schema, and as tables for docs/scenario.md."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from memvirt.vmkernel.options import MemoryOptions

from .keys import (
    LiveOptions,
    LiveVmOptions,
    MachineOptions,
    RemapOptions,
    ResizeOptions,
    Scenario,
    VmOptions,
)

__all__ = ["key_tables", "scenario_schema"]


def scenario_schema() -> dict[str, Any]:
    """The JSON Schema of scenario files."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def key_tables() -> str:
    """Markdown tables of all keys: docs/scenario.md."""
    parts = []
    for title, model in (
        ("top level", Scenario),
        ("[machine]", MachineOptions),
        ("[[machine.resize]]", ResizeOptions),
        ("[machine.Mem]", MemoryOptions),
        ("[[vm]]", VmOptions),
        ("[vm.live]", LiveVmOptions),
        ("[remap]", RemapOptions),
        ("[live]", LiveOptions),
    ):
        parts.append(f"## `{title}`\n\n| key | default | meaning |\n|---|---|---|")
        for name, field in model.model_fields.items():
            parts.append(f"| `{field.alias or name}` | {_default(field)} | {field.description} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: Any) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if value is None or isinstance(value, BaseModel) or value in ("", ()):
        return "-"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else getattr(value, 'value', value)}`"
