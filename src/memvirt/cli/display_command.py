# SPDX-License-Identifier: Apache-2.0
"""``memvirt display``: the text screen that a snapshot holds."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import UsageError, user_errors


def display_command(
    snapshot: Annotated[str, typer.Argument(help="what memvirt boot --snapshot wrote")],
) -> None:
    """Show the text screen of a VM in a snapshot."""
    with user_errors():
        from memvirt.observe.snapshot import load_snapshot  # noqa: PLC0415
        from memvirt.observe.view import PageUnavailable  # noqa: PLC0415

        from .display import as_text  # noqa: PLC0415

        try:
            print(as_text(load_snapshot(snapshot).screen()))
        except PageUnavailable as error:
            raise UsageError(f"{snapshot}: {error}") from error
