# SPDX-License-Identifier: Apache-2.0
"""From what a terminal sends to the keys of a PS/2 keyboard with the layout of the United States.

Scan codes are those of set 2 (IBM PS/2 Technical Reference, "Keyboards"): a key that is pressed
sends its code, 0xf0 and the code when it is let go; keys that the first keyboards did not have send
0xe0 before each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SHIFT, _CONTROL = b"\x12", b"\x14"
_ENTER, _TABULATOR, _BACKSPACE, _ESCAPE = b"\x5a", b"\x0d", b"\x66", b"\x76"
# Rows of keys: their characters, with shift, and their codes.
_ROWS = (
    ("`1234567890-=", "~!@#$%^&*()_+", "0e161e26252e363d3e46454e55"),
    ("qwertyuiop[]\\", "QWERTYUIOP{}|", "151d242d2c353c43444d545b5d"),
    ("asdfghjkl;'", 'ASDFGHJKL:"', "1c1b232b34333b424b4c52"),
    ("zxcvbnm,./ ", "ZXCVBNM<>?", "1a22212a32313a41494a29"),
)
_PLAIN: dict[str, bytes] = {}
_SHIFTED: dict[str, bytes] = {}
for _plain, _shifted, _codes in _ROWS:
    _keys = [bytes([code]) for code in bytes.fromhex(_codes)]
    _PLAIN.update(zip(_plain, _keys, strict=True))
    _SHIFTED.update(zip(_shifted, _keys, strict=False))
_PLAIN |= {"\r": _ENTER, "\n": _ENTER, "\t": _TABULATOR, "\x7f": _BACKSPACE, "\b": _BACKSPACE}
_FUNCTION = "05 06 04 0c 03 0b 83 0a 01 09 78 07"  # F1 to F12
# Control sequences of terminals (ECMA-48; xterm's for keys): what follows ESC.
_SEQUENCES = {
    "[A": "e075", "[B": "e072", "[C": "e074", "[D": "e06b", "[H": "e06c", "[F": "e069",
    "OA": "e075", "OB": "e072", "OC": "e074", "OD": "e06b", "OH": "e06c", "OF": "e069",
    "[1~": "e06c", "[2~": "e070", "[3~": "e071", "[4~": "e069", "[5~": "e07d", "[6~": "e07a",
    **dict(zip(("OP", "OQ", "OR", "OS", "[15~", "[17~", "[18~", "[19~", "[20~", "[21~", "[23~",
                "[24~"), _FUNCTION.split(), strict=True)),
}  # fmt: skip
_KEY = re.compile(
    "\x1b(?:" + "|".join(re.escape(key) for key in _SEQUENCES) + ")|.", re.DOTALL | re.ASCII
)


def _let_go(key: bytes) -> bytes:
    return key[:-1] + b"\xf0" + key[-1:]


def _held(modifier: bytes, key: bytes) -> bytes:
    return modifier + key + _let_go(key) + _let_go(modifier)


def scan_codes(typed: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each key of ``typed``, as a terminal sends it, and what pressing it and letting it go sends.

    Control characters are their letters with Ctrl held, but for Enter, Tab, Backspace and Escape.
    Bytes that no key of this layout gives send nothing.
    """
    for found in _KEY.findall(typed.decode("latin-1")):
        yield found.encode("latin-1"), _scan_codes_of(found)


def _scan_codes_of(found: str) -> bytes:
    if len(found) > 1:
        key = bytes.fromhex(_SEQUENCES[found[1:]])
        return key + _let_go(key)
    if found == "\x1b":
        return _ESCAPE + _let_go(_ESCAPE)
    if found in _PLAIN:
        return _PLAIN[found] + _let_go(_PLAIN[found])
    if found in _SHIFTED:
        return _held(_SHIFT, _SHIFTED[found])
    if found < " ":
        letter = chr(ord(found) + 0x40).lower()
        return _held(_CONTROL, _PLAIN.get(letter) or _SHIFTED[letter])
    return b""
