# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG: what a self-contained report needs, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 860, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 30


@dataclass(frozen=True, slots=True)
class Line:
    """One series. ``area``: filled, stacked on the areas before it."""

    name: str
    values: Sequence[float]
    colour: str
    area: bool = False
    dashed: bool = False


def ticks(high: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least ``high``."""
    if high <= 0:
        return [0.0, 1.0]
    raw = high / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def plot(
    x: Sequence[float], x_labels: Sequence[tuple[float, str]], lines: Sequence[Line], unit: str
) -> str:
    """An SVG picture with a legend. ``x`` rises; all values are zero or more."""
    stack = [0.0] * len(x)
    drawn: list[tuple[Line, list[float], list[float]]] = []
    for line in lines:
        if line.area:
            base, stack = stack, [s + v for s, v in zip(stack, line.values, strict=True)]
            drawn.append((line, base, stack))
        else:
            drawn.append((line, [], list(line.values)))
    marks = ticks(max((max(values, default=0) for _, _, values in drawn), default=0))
    low, high = (x[0], x[-1]) if len(x) > 1 else (0.0, 1.0)

    def px(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def py(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / marks[-1] * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {_HEIGHT + 22}" role="img" '
        f'aria-label="{escape(", ".join(line.name for line in lines))}">'
    ]
    for mark in marks:
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(mark):.1f}" '
            f'y2="{py(mark):.1f}"/><text class="tick" text-anchor="end" x="{_LEFT - 6}" '
            f'y="{py(mark) + 4:.1f}">{mark:,g}</text>'
        )
    out.append(f'<text class="tick" x="4" y="{_TOP + 2}">{escape(unit)}</text>')
    for position, label in x_labels:
        if low <= position <= high:
            out.append(
                f'<text class="tick" text-anchor="middle" x="{px(position):.1f}" '
                f'y="{_HEIGHT - 10}">{escape(label)}</text>'
            )
    xs = list(x) if len(x) > 1 else [0.0, 1.0]
    for line, base, values in drawn:
        tops = values if len(x) > 1 else values * 2
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(xs, tops, strict=True))
        if line.area:
            floor = base if len(x) > 1 else base * 2
            back = " ".join(
                f"{px(a):.1f},{py(b):.1f}"
                for a, b in zip(reversed(xs), reversed(floor), strict=True)
            )
            out.append(f'<polygon points="{path} {back}" fill="{line.colour}" opacity="0.75"/>')
        else:
            dash = ' stroke-dasharray="6 4"' if line.dashed else ""
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{line.colour}" '
                f'stroke-width="1.6"{dash}/>'
            )
    at = _LEFT
    for line in lines:
        out.append(
            f'<rect x="{at}" y="{_HEIGHT + 4}" width="12" height="10" fill="{line.colour}"/>'
            f'<text class="tick" x="{at + 17}" y="{_HEIGHT + 13}">{escape(line.name)}</text>'
        )
        at += 34 + 7 * len(line.name)
    out.append("</svg></div>")
    return "".join(out)


def bars(
    rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[tuple[str, str]], unit: str
) -> str:
    """Stacked horizontal bars: rows of (label, value of each part); parts are (name, colour)."""
    height = 24 * len(rows) + 44
    left, right = 190, 70
    marks = ticks(max((sum(values) for _, values in rows), default=0))
    scale = (_WIDTH - left - right) / marks[-1]
    out = [
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(unit)}">'
    ]
    for row, (label, values) in enumerate(rows):
        y, x = 24 * row + 4, float(left)
        out.append(
            f'<text class="tick" text-anchor="end" x="{left - 8}" y="{y + 13}">'
            f"{escape(label[:28])}</text>"
        )
        for value, (name, colour) in zip(values, parts, strict=True):
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="18" '
                f'fill="{colour}"><title>{escape(name)}: {value:,.1f} {escape(unit)}</title></rect>'
            )
            x += value * scale
        out.append(f'<text class="tick" x="{x + 5:.1f}" y="{y + 13}">{sum(values):,.1f}</text>')
    at = left
    for name, colour in parts:
        out.append(
            f'<rect x="{at}" y="{height - 24}" width="12" height="10" fill="{colour}"/>'
            f'<text class="tick" x="{at + 17}" y="{height - 15}">{escape(name)}</text>'
        )
        at += 34 + 7 * len(name)
    out.append(
        f'<text class="tick" x="{_WIDTH - right}" y="{height - 15}">{escape(unit)}</text>'
        "</svg></div>"
    )
    return "".join(out)
