# SPDX-License-Identifier: Apache-2.0
"""Decompression of LZO1X, as makedumpfile and QEMU pack the pages of a dump.

Source: the format as Linux describes it, Documentation/staging/lzo.rst. An instruction copies bytes
that were written before (a match), then up to three literals; what an instruction below 16 means
depends on how many literals the one before it ended with (0 to 3, or 4: a run of its own).
"""

from __future__ import annotations

import numpy as np

from memvirt.compiled import compiled

_ENDS_EARLY, _TOO_LONG, _BAD_DISTANCE, _BYTES_LEFT = -1, -2, -3, -4
_REASONS = {
    _ENDS_EARLY: "it ends inside an instruction",
    _TOO_LONG: "it holds more than a page",
    _BAD_DISTANCE: "a match begins before the page",
    _BYTES_LEFT: "there are bytes behind its end mark",
}
_RUN = 4  # the state after a run of literals


Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class LzoError(Exception):
    """What is wrong with compressed data."""


def decompress(packed: bytes, most: int) -> bytes:
    """The content of one compressed block, at most ``most`` bytes. Raises LzoError."""
    out = np.empty(most, np.uint8)
    size = int(_decompress(np.frombuffer(packed, np.uint8), out))
    if size < 0:
        raise LzoError(f"LZO: {_REASONS[size]}")
    return out[:size].tobytes()


@compiled
def _length(packed: Bytes, at: int, short: int, base: int) -> tuple[int, int]:
    """A length whose bits are ``short``, or if those are 0 ``base``, 255 for each byte of zero and
    the byte behind them; and where the next byte is, -1 if there is none."""
    if short != 0:
        return short, at
    length = base
    while at < packed.size and packed[at] == 0:
        length += 255
        at += 1
    if at >= packed.size:
        return 0, -1
    return length + int(packed[at]), at + 1


@compiled
def _decompress(packed: Bytes, out: Bytes) -> int:
    """Bytes written to ``out``, or one of the reasons (below 0)."""
    at, done, state = 0, 0, 0
    literals = 0
    if packed.size > 0 and packed[0] > 17:
        literals = int(packed[0]) - 17
        state = min(literals, _RUN)
        at = 1
    while True:
        if at + literals > packed.size:
            return _ENDS_EARLY
        if done + literals > out.size:
            return _TOO_LONG
        for _ in range(literals):
            out[done] = packed[at]
            done += 1
            at += 1
        if at >= packed.size:
            return _ENDS_EARLY
        code = int(packed[at])
        at += 1
        if code < 16 and state == 0:
            literals, at = _length(packed, at, code, 15)
            if at < 0:
                return _ENDS_EARLY
            literals += 3
            state = _RUN
            continue
        if code < 16 or code >= 64:
            if at >= packed.size:
                return _ENDS_EARLY
            high = int(packed[at])
            at += 1
            if code >= 128:
                length, distance = 5 + (code >> 5 & 3), (high << 3) + (code >> 2 & 7) + 1
            elif code >= 64:
                length, distance = 3 + (code >> 5 & 1), (high << 3) + (code >> 2 & 7) + 1
            elif state == _RUN:
                length, distance = 3, (high << 2) + (code >> 2) + 2049
            else:
                length, distance = 2, (high << 2) + (code >> 2) + 1
            state = code & 3
        else:
            if code >= 32:
                length, at = _length(packed, at, code & 31, 31)
            else:
                length, at = _length(packed, at, code & 7, 7)
            if at < 0 or at + 2 > packed.size:
                return _ENDS_EARLY
            word = int(packed[at]) | int(packed[at + 1]) << 8
            at += 2
            length += 2
            if code >= 32:
                distance = (word >> 2) + 1
            else:
                distance = 16384 + ((code & 8) << 11) + (word >> 2)
                if distance == 16384:  # the end mark
                    return done if at == packed.size else _BYTES_LEFT
            state = word & 3
        if distance > done:
            return _BAD_DISTANCE
        if done + length > out.size:
            return _TOO_LONG
        for _ in range(length):  # byte by byte: a match may run into what it writes
            out[done] = out[done - distance]
            done += 1
        literals = state
