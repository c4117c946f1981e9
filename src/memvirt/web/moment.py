# SPDX-License-Identifier: Apache-2.0
"""The header of a frame, and its point of the time line, from a sample."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from memvirt.observe.esxtop import COLUMNS, Interval
from memvirt.vmkernel.host_state import CLEAR_PERCENT, HARD_PERCENT, LOW_PERCENT, SOFT_PERCENT
from memvirt.vmkernel.samples import Sample


def plain(record: Any) -> dict[str, Any]:
    """A dataclass whose fields are plain values as a dict (``asdict`` would copy each value)."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def marks(min_free: int, high_percent: float) -> dict[str, int]:
    """Free frames that border the host's states: below ``high``, memory is no longer plenty."""
    percent = {
        "high": high_percent,
        "clear": CLEAR_PERCENT,
        "soft": SOFT_PERCENT,
        "hard": HARD_PERCENT,
        "low": LOW_PERCENT,
    }
    return {name: int(min_free * part / 100) for name, part in percent.items()}


def sample_header(sample: Sample, interval: Interval) -> dict[str, Any]:
    """What a sample says: host and VMs, with the cells of esxtop's table."""
    return {
        "time_ns": sample.host.time_ns,
        "host": plain(sample.host) | {"state": int(sample.host.state)},
        "vms": [
            plain(vm)
            | {
                "cells": [column.value(interval, vm) for column in COLUMNS],
                "outcome": "",
                "pages": vm.memory,
                "paging": "",
            }
            for vm in sample.vms
        ],
    }


def point(header: dict[str, Any]) -> dict[str, Any]:
    """What the time line needs of a frame. ``vms``: id, consumed, balloon, zipped, swapped,
    target, in pages."""
    amounts = ("balloon", "zipped", "swapped", "target")
    return {
        "number": header["number"],
        "time_ns": header["time_ns"],
        "state": header["host"]["state"],
        "free": header["host"]["free"],
        "vms": [
            [vm["vm_id"], round(vm["consumed"]), *(vm[name] for name in amounts)]
            for vm in header["vms"]
        ],
    }
