# SPDX-License-Identifier: Apache-2.0
"""The escape key of an interactive console: Ctrl-A, as with ``qemu -nographic``.

Every other key, Ctrl-C among them, is the guest's.
"""

from __future__ import annotations

from dataclasses import dataclass

ESCAPE = 0x01  # Ctrl-A
HELP = (
    "Ctrl-A x  end the VM, with its report\n"
    "Ctrl-A h  this help\n"
    "Ctrl-A Ctrl-A  send Ctrl-A to the guest\n"
)


@dataclass(frozen=True, slots=True)
class Typed:
    """What a piece of input means: keys for the guest, and what memvirt is asked."""

    keys: bytes
    end: bool = False
    help: bool = False


class EscapeKeys:
    """Takes escapes out of what is typed; one may be split between two pieces of input."""

    def __init__(self) -> None:
        self._escaped = False

    def take(self, data: bytes) -> Typed:
        """The meaning of ``data``, typed after what was taken before. An end drops what follows."""
        keys = bytearray()
        wants_help = False
        for key in data:
            if not self._escaped:
                if key == ESCAPE:
                    self._escaped = True
                else:
                    keys.append(key)
                continue
            self._escaped = False
            if key in b"xX":
                return Typed(bytes(keys), end=True, help=wants_help)
            if key in b"hH?":
                wants_help = True
            elif key in (ESCAPE, ord("a")):
                keys.append(ESCAPE)
        return Typed(bytes(keys), help=wants_help)
