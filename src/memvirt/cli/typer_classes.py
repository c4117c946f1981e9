# SPDX-License-Identifier: Apache-2.0
"""Typer's command and group, without a detour at every start.

Typer 0.29 makes a value that was not given (None) go through Pydantic, also that of the ``--help``
it adds itself: 0.2 s of imports for each command, whatever its options are. A flag that is False is
passed by, and False is what a help that was not asked for is.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _not_asked_for(option: Any) -> Any:
    if option is not None:
        option.default = False
    return option


class Command(TyperCommand):
    """A command whose options are all that it imports."""

    def get_help_option(self, ctx: Any) -> Any:
        return _not_asked_for(super().get_help_option(ctx))


class Group(TyperGroup):
    """As ``Command``, for the command that has the others."""

    def get_help_option(self, ctx: Any) -> Any:
        return _not_asked_for(super().get_help_option(ctx))
