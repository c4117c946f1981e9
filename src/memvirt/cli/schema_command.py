# SPDX-License-Identifier: Apache-2.0
"""``memvirt schema``."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import typer


def schema_command(
    tables: Annotated[
        bool, typer.Option("--tables", help="the keys as Markdown tables instead")
    ] = False,
) -> None:
    """Print the JSON Schema of scenario files."""
    if tables:
        from memvirt.scenario.schema import key_tables  # noqa: PLC0415

        print(key_tables())
    else:
        # Made ahead (`make docs`, held by a test): building it takes half a second of imports.
        schema = files("memvirt.scenario").joinpath("scenario.schema.json")
        print(schema.read_text(encoding="utf-8"), end="")
