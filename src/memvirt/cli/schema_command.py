# SPDX-License-Identifier: Apache-2.0
"""``memvirt schema``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema_command(
    tables: Annotated[
        bool, typer.Option("--tables", help="the keys as Markdown tables instead")
    ] = False,
) -> None:
    """Print the JSON Schema of scenario files."""
    from memvirt.scenario.schema import key_tables, scenario_schema  # noqa: PLC0415

    print(key_tables() if tables else json.dumps(scenario_schema(), indent=2))
