# SPDX-License-Identifier: Apache-2.0
"""Ctrl-A at an interactive console."""

from __future__ import annotations

from memvirt.cli.escape import EscapeKeys, Typed


def test_ordinary_keys_and_ctrl_c_are_the_guests() -> None:
    assert EscapeKeys().take(b"ls\r\x03x") == Typed(b"ls\r\x03x")


def test_escapes_may_be_split_between_reads() -> None:
    keys = EscapeKeys()
    assert keys.take(b"a\x01") == Typed(b"a")
    assert keys.take(b"h") == Typed(b"", help=True)
    assert keys.take(b"\x01\x01b\x01x rest") == Typed(b"\x01b", end=True)


def test_an_unknown_escape_is_dropped() -> None:
    assert EscapeKeys().take(b"\x01zq") == Typed(b"q")
