# SPDX-License-Identifier: Apache-2.0
"""Tables as notebooks show them (``_repr_html_``). Text in them may come from guests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def one_line(text: str, most: int = 200) -> str:
    """``text`` in one line of at most ``most`` characters, which no terminal obeys."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def first_line(error: Exception) -> str:
    """What an error of a library says first, in one line that no terminal obeys."""
    return one_line(next(iter(str(error).splitlines()), type(error).__name__))


def html_table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as HTML, all of its text escaped. None is shown as an empty cell, numbers aligned."""

    def cell(value: object) -> str:
        text = "" if value is None else one_line(str(value))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        align = "right" if number else "left"
        return f'<td style="text-align:{align}">{escape(text)}</td>'

    head = "".join(f"<th>{escape(one_line(name))}</th>" for name in headers)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f"<table><caption>{escape(one_line(caption))}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
