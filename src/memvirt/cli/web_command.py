# SPDX-License-Identifier: Apache-2.0
"""The options of ``memvirt web``, and ``--web`` of other commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import user_errors
from .typer_classes import Command

_ADDRESS = re.compile(r"(\S*:)?\d{1,5}")

Web = Annotated[
    str | None,
    typer.Option(
        "--web",
        metavar="[HOST:PORT]",
        help="show it live in a browser; at a free port of 127.0.0.1 if none is given",
    ),
]


class WebCommand(Command):
    """A command whose ``--web`` may stand without a value.

    What follows is its value only if it looks like an address, so that ``run --web NAME`` runs
    the scenario NAME.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        made: list[str] = []
        for position, argument in enumerate(args):
            bare = argument == "--web" and "--" not in args[:position]
            following = args[position + 1] if position + 1 < len(args) else ""
            made.append("--web=" if bare and not _ADDRESS.fullmatch(following) else argument)
        return super().parse_args(ctx, made)


def web_command(
    record: Annotated[Path, typer.Argument(help="what memvirt run --record kept")],
    at: Annotated[str, typer.Option(metavar="HOST:PORT", help="where to serve")] = "",
) -> None:
    """Show a record in a browser."""
    with user_errors():
        from .web import serve_record  # noqa: PLC0415

        status = serve_record(record, at)
    sys.exit(status)
