# SPDX-License-Identifier: Apache-2.0
"""The names of the kinds, without what they import (a test holds them to ``kinds.py``)."""

KIND_NAMES = (
    "image",
    "snapshot",
    "scenario",
    "plan",
    "dump",
    "record",
    "live",
    "command",
    "code16",
    "code32",
    "code64",
    "ports",
    "apic",
    "balloon",
    "neighbours",
)
