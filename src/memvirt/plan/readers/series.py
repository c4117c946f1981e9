# SPDX-License-Identifier: Apache-2.0
"""Rows of (time, VM, amounts) in any order, made into one series for each VM."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from memvirt.plan.findings import Findings, name_some
from memvirt.plan.readings import Floats, VmReading

_MOST_SECONDS = 1e15  # milliseconds too
_MILLISECONDS = 1e11  # a date since 1970 is below in seconds, above in milliseconds (from 1973)


def _seconds(cell: str) -> float:
    """A number of seconds or milliseconds that is a time. Raises ValueError."""
    number = float(cell)
    if not abs(number) < _MOST_SECONDS:  # nor NaN
        raise ValueError(cell)
    return number


def _date(cell: str) -> datetime:
    """A date in ISO 8601, or with points. Slashes mean months or days first: nobody knows which."""
    try:
        return datetime.fromisoformat(cell)
    except ValueError:
        form = "%d.%m.%Y %H:%M:%S" if cell.count(":") == 2 else "%d.%m.%Y %H:%M"
        return datetime.strptime(cell, form).replace(tzinfo=UTC)


def seconds_of(cells: list[str], findings: Findings, where: str = "") -> Floats:
    """Times of text: ISO 8601, day.month.year, seconds or milliseconds since 1970; NaN (with a
    warning) if none. Raises PlanDataError if all are none."""
    out = np.full(len(cells), np.nan)
    bad = []
    for row, cell in enumerate(cells):
        try:
            out[row] = _seconds(cell)
        except ValueError:
            try:
                when = _date(cell)
                out[row] = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
            except ValueError:
                bad.append(f'row {row + 2}: "{cell}"')
    if bad and len(bad) == len(cells):
        raise findings.error(
            f'no row has a usable time (the first is "{cells[0]}"); write '
            "2024-10-27T14:00:00+01:00, or seconds since 1970",
            where,
        )
    if bad:
        findings.warn(
            f"{len(bad)} rows without a usable time, left out: {name_some(bad, 3)}", where
        )
    return seconds(out)


def seconds(times: Floats) -> Floats:
    """Seconds of numbers that may be milliseconds, microseconds or nanoseconds since 1970."""
    for factor in (1e9, 1e6, 1e3):
        if np.nanmax(np.abs(times), initial=0) >= _MILLISECONDS / 1e3 * factor:
            return times / factor
    return times


def make_series(
    names: Any, times: Floats, in_use: Floats, active: Floats, findings: Findings
) -> dict[str, VmReading]:
    """One reading for each name, with its rows in order of time.

    Rows without a time are left out (the caller has said so). Of two rows of one VM and one time
    the larger amounts count, with a warning.
    """
    names = np.asarray(names, dtype=object)
    known = ~np.isnan(times)
    unique, code = np.unique(names[known].astype(str), return_inverse=True)
    times, in_use, active = times[known], in_use[known], active[known]
    order = np.lexsort((times, code))
    code, times, in_use, active = code[order], times[order], in_use[order], active[order]
    twice = (np.diff(code) == 0) & (np.diff(times) == 0)
    if twice.any():
        several = sorted({str(unique[c]) for c in code[1:][twice]})
        findings.warn(
            f"{int(twice.sum())} rows repeat a VM's time (two VMs of one name?), the larger "
            f"amount counts: {name_some(several)}"
        )
        first = np.flatnonzero(np.concatenate(([True], ~twice)))
        in_use, active = np.fmax.reduceat(in_use, first), np.fmax.reduceat(active, first)
        code, times = code[first], times[first]
    bounds = np.searchsorted(code, np.arange(unique.size + 1))
    return {
        str(name): VmReading(str(name), times=times[a:b], in_use=in_use[a:b], active=active[a:b])
        for name, a, b in zip(unique, bounds[:-1], bounds[1:], strict=True)
    }
