# SPDX-License-Identifier: Apache-2.0
"""The format of page states on the WebSocket: a keyframe, then what has changed.

A message is a header, a length in four bytes (little-endian) and UTF-8 JSON, and after it one
deflate stream. The header's ``parts`` say what the stream holds, in order: each is one array of
page classes, ``vm:ID`` by PPN or ``machine`` or ``owners`` by MPN. A part is *whole* (``count``
bytes, the array; with ``size`` 0 there is no such part any more) or a *delta*: ``count`` gaps of
``width`` bytes each (little-endian; an index is the sum of the gaps up to it), then as many new
bytes. Neighbours change together, so gaps deflate well.
``version`` is that of this format; a client that does not know it says so and draws nothing.

Who has fallen behind gets the difference between what it was sent last and what is true now: frames
in between are never queued, so a slow client costs the memory of one frame.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memvirt.observe.page_classes import HostPages

VERSION = 1
_FAST = 1  # zlib's level: states are runs, the better levels gain little
_WHOLE_ABOVE = 0.15  # part of an array that may change before it is cheaper to send all of it

Indices = np.ndarray[tuple[int], np.dtype[np.uint32]]
Classes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Parts = dict[str, Classes]


def parts_of(pages: HostPages) -> Parts:
    """The arrays of a frame by their names; owners are sent plus one, 0 for nobody."""
    parts: Parts = {f"vm:{vm.vm_id}": vm.classes for vm in pages.vms}
    parts["machine"] = pages.frames
    parts["owners"] = np.minimum(pages.owners + 1, 255).astype(np.uint8)
    return parts


@dataclass(frozen=True, slots=True)
class Change:
    """How one array became what it is: ``values`` at ``indices``, ascending, or all of it.

    ``indices`` is None where ``values`` are the whole array; ``size`` is the array's.
    """

    name: str
    size: int
    indices: Indices | None
    values: Classes

    def raw(self) -> tuple[int, bytes]:
        """Bytes of a gap (0: there are none), and the gaps and values."""
        if self.indices is None:
            return 0, self.values.tobytes()
        gaps = np.diff(self.indices, prepend=np.uint32(0))
        width = 2 if not gaps.size or gaps.max() < 1 << 16 else 4
        return width, gaps.astype(f"<u{width}").tobytes() + self.values.tobytes()


def unpack(raw: bytes, at: int, count: int, width: int) -> tuple[Indices, Classes]:
    """Indices and values that ``raw`` made."""
    gaps = np.frombuffer(raw, f"<u{width}", count, at)
    return np.cumsum(gaps, dtype=np.uint32), np.frombuffer(raw, np.uint8, count, at + width * count)


def changes(now: Parts, before: Parts | None = None) -> list[Change]:
    """What differs between two states; arrays that are new or of another size are whole.

    An array that there is no more becomes one of size 0.
    """
    gone = () if before is None else before.keys() - now.keys()
    made = [Change(name, 0, None, np.empty(0, np.uint8)) for name in sorted(gone)]
    for name, array in now.items():
        old = None if before is None else before.get(name)
        if old is not None and old.size == array.size:
            changed = np.flatnonzero(array != old)
            if not changed.size:
                continue
            if changed.size <= array.size * _WHOLE_ABOVE:
                made.append(Change(name, array.size, changed.astype(np.uint32), array[changed]))
                continue
        made.append(Change(name, array.size, None, array))
    return made


def encode(
    header: Mapping[str, Any], now: Parts, before: Parts | None = None, *, text: bytes = b"{}"
) -> bytes:
    """One message: ``now`` as the difference to ``before``, or whole where there is none.

    ``text`` is the part of the header that is JSON already, an object.
    """
    heads, stream = [], []
    for change in changes(now, before):
        kind = "whole" if change.indices is None else "delta"
        count = int(change.values.size)
        width, raw = change.raw()
        head = {"name": change.name, "kind": kind, "size": change.size, "count": count}
        heads.append(head | {"width": width} if width else head)
        stream.append(raw)
    rest = json.dumps({**header, "version": VERSION, "parts": heads}).encode()
    text = rest if text == b"{}" else text[:-1] + b"," + rest[1:]
    return struct.pack("<I", len(text)) + text + zlib.compress(b"".join(stream), _FAST)


def decode(message: bytes, before: Parts | None = None) -> tuple[dict[str, Any], Parts]:
    """What ``encode`` wrote, on top of the arrays the receiver has. Raises ValueError."""
    (length,) = struct.unpack_from("<I", message)
    header: dict[str, Any] = json.loads(message[4 : 4 + length])
    if header["version"] != VERSION:
        raise ValueError(f"format version {header['version']}; this is {VERSION}")
    stream = zlib.decompress(message[4 + length :])
    parts = {name: array.copy() for name, array in (before or {}).items()}
    at = 0
    for part in header["parts"]:
        name, count = part["name"], part["count"]
        if not part["size"]:
            parts.pop(name, None)
            continue
        if part["kind"] == "whole":
            parts[name] = np.frombuffer(stream, np.uint8, count, at).copy()
            at += count
            continue
        indices, values = unpack(stream, at, count, part["width"])
        parts[name][indices] = values
        at += (part["width"] + 1) * count
    return header, parts
