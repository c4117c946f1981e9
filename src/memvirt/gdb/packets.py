# SPDX-License-Identifier: Apache-2.0
"""Packets of the remote serial protocol (GDB manual, section "Overview" of the protocol)."""

from __future__ import annotations

from dataclasses import dataclass

INTERRUPT = b"\x03"
"""Ctrl-C, which comes outside packets."""

MOST_BYTES = 0x4000
"""The longest packet, without its frame, that is taken."""

_ESCAPE, _FLIP = 0x7D, 0x20
_SPECIAL = b"$#}*"


@dataclass(frozen=True, slots=True)
class Received:
    """What arrived: whole packets, and INTERRUPT, in their order; None for a packet that is
    damaged and to be sent again."""

    packets: tuple[bytes | None, ...]
    refused: bool
    """True if a reply of ours arrived damaged and is to be sent again."""


def escaped(content: bytes) -> bytes:
    """Binary ``content`` with the bytes that have a meaning escaped."""
    out = bytearray()
    for byte in content:
        if byte in _SPECIAL:
            out += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            out.append(byte)
    return bytes(out)


def unescaped(content: bytes) -> bytes:
    """The reverse of ``escaped``. A lone escape at the end is dropped."""
    out, flip = bytearray(), 0
    for byte in content:
        if byte == _ESCAPE and not flip:
            flip = _FLIP
        else:
            out.append(byte ^ flip)
            flip = 0
    return bytes(out)


def framed(content: bytes) -> bytes:
    """``content``, escaped where it must be, as a packet."""
    return b"$" + content + f"#{sum(content) & 0xFF:02x}".encode()


class PacketReader:
    """Takes a stream of bytes apart. It may be cut anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, data: bytes) -> Received:
        """What is complete with ``data``; the rest is kept for the next call."""
        buffer = self._buffer
        buffer += data
        packets: list[bytes | None] = []
        refused = False
        while buffer:
            first = bytes(buffer[:1])
            if first != b"$":
                if first == INTERRUPT:
                    packets.append(INTERRUPT)
                refused = refused or first == b"-"
                del buffer[0]
                continue
            end = buffer.find(b"#")
            if end < 0 and len(buffer) > MOST_BYTES + 1:
                packets.append(None)
                buffer.clear()
            if end < 0 or len(buffer) < end + 3:
                break
            content, said = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
            del buffer[: end + 3]
            good = said.lower() == f"{sum(content) & 0xFF:02x}".encode()
            packets.append(content if good and len(content) <= MOST_BYTES else None)
        return Received(tuple(packets), refused)
