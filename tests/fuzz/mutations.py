# SPDX-License-Identifier: Apache-2.0
"""Changes of good inputs, drawn from a generator of random numbers."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x10000, 0xFFFFF, 0x100000)
WIDE = (*WORDS, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, (1 << 47) - 1, 1 << 47, 1 << 52)
WIDEST = (*WIDE, (1 << 63) - 1, 1 << 63, 0xFFFF_8000_0000_0000, (1 << 64) - 4096, (1 << 64) - 1)

STRANGE_NUMBERS = (
    "-1", "0", "1e300", "inf", "-inf", "nan", "1e-300", "8T", "9999999T", "-5M", "0x10", "1_0",
    "9" * 400, "9" * 5000, "1.5", "0.5K", "  3M ", "3 M", "\u0663M", "1e400", "+7", "4095", "256",
)  # fmt: skip
STRANGE_TEXTS = (
    "", " ", "\0", "a\0b", "\x1b[2J", "\ud800", "\udcff", "\u202e", "\n", "x" * 5000, "../..", "-",
    "--", "%s%n", "\ufeff", "'\"\\", "/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem", ".",
    "nowhere/nothing",
)  # fmt: skip


def change_bytes(draw: random.Random, data: bytes, *, first: int | None = None) -> bytes:
    """``data`` with some of it changed, cut off, repeated or put elsewhere.

    ``first``: most changes are within so many bytes, where headers are.
    """
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8, 40))):
        if not changed:
            break
        within = min(len(changed), first or len(changed)) if draw.random() < 0.9 else len(changed)
        at = draw.randrange(within)
        choice = draw.randrange(8)
        if choice <= 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif choice == 2:
            changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif choice in (3, 4):
            size = draw.choice((2, 4, 4, 8))
            word = draw.choice(WIDEST) & (1 << 8 * size) - 1
            at &= -draw.choice((1, size))
            changed[at : at + size] = word.to_bytes(size, "little")
        elif choice == 5 and draw.random() < 0.5:
            del changed[at:]
        elif choice == 6:
            changed[at:at] = changed[at : at + draw.choice((1, 4, 64))]
        else:
            del changed[at : at + draw.choice((1, 4, 64))]
    return bytes(changed)


def change_text(draw: random.Random, text: str) -> bytes:
    """A line changed, lost, doubled or moved; a number or a text replaced by a strange one."""
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(lines))
        choice = draw.randrange(8)
        if choice == 0:
            del lines[at]
        elif choice == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif choice == 2:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
        elif "=" in lines[at]:
            key = lines[at].partition("=")[0]
            lines[at] = f"{key}= {_strange_value(draw)}"
        elif "," in lines[at]:
            cells = lines[at].split(",")
            cells[draw.randrange(len(cells))] = draw.choice(STRANGE_NUMBERS + STRANGE_TEXTS)
            lines[at] = ",".join(cells)
        lines = lines or [""]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return change_bytes(draw, data) if draw.random() < 0.2 else data


def _strange_value(draw: random.Random) -> str:
    choice = draw.randrange(5)
    if choice == 0:
        return draw.choice(STRANGE_NUMBERS)
    if choice == 1:
        depth = draw.choice((1, 3, 200, 3000))
        return "[" * depth + "]" * depth
    if choice == 2:
        return "{a = {b = 1}, c = [1, {d = 2}]}"
    text = draw.choice(STRANGE_NUMBERS + STRANGE_TEXTS)
    escaped = text.encode("utf-8", "surrogatepass").decode("latin-1")
    return json.dumps(escaped if choice == 3 else text)


def members(data: bytes) -> dict[str, bytes]:
    """The content of a ZIP archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes]) -> bytes:
    """A ZIP archive of ``parts``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            # Without a date: the same parts are the same archive.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def change_json(draw: random.Random, value: Any) -> Any:
    """``value`` with one thing in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        changed = dict(value)
        choice = draw.random()
        if choice < 0.1:
            del changed[key]
        elif choice < 0.2:
            changed[key + "\x1b[31m"] = changed.pop(key)
        else:
            changed[key] = change_json(draw, value[key])
        return changed
    return draw.choice(
        [None, True, -1, 0, 1, 2, 5, 1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1, 1 << 64, 10**400,
         1.5, float("inf"), float("nan"), "", "\x1b[2J", "\ud800", "x" * 100_000, [], [[]] * 9, {}]
    )  # fmt: skip


def change_members(draw: random.Random, parts: dict[str, bytes]) -> dict[str, bytes]:
    """A snapshot's ``parts`` with one changed, lost, added or of another size."""
    parts = dict(parts)
    name = draw.choice(list(parts))
    content = bytearray(parts[name])
    choice = draw.randrange(7)
    if choice == 0:
        del parts[name]
    elif choice == 1:
        parts[draw.choice(["../../x", "\x1b[2J", "frames/9", "kept/-1", name + "/"])] = b"x" * 9
    elif choice == 2:
        parts[name] = bytes(content[: draw.randrange(len(content) + 1)])
    elif choice == 3:
        parts[name] = bytes(content) + bytes(draw.randrange(1, 5000))
    elif choice == 4 and content:
        for _ in range(draw.choice((1, 4, 400))):
            content[draw.randrange(len(content))] = draw.choice((0, 1, 3, 4, 0x7F, 0xFF))
        parts[name] = bytes(content)
    elif choice == 5 and len(content) >= 4:
        at = draw.randrange(len(content) // 4) * 4
        struct.pack_into("<I", content, at, draw.choice((0, 1, 10, 0xFFFF_FFFF, 0x8000_0000)))
        parts[name] = bytes(content)
    elif _is_json(parts.get("meta.json", b"")):
        meta = change_json(draw, json.loads(parts["meta.json"]))
        parts["meta.json"] = json.dumps(meta).encode()
    return parts


def change_snapshot(draw: random.Random, good: bytes) -> bytes:
    """The file changed, or what is in it."""
    if draw.random() < 0.4:
        return change_bytes(draw, good)
    parts = members(good)
    if draw.random() < 0.3 and "mpns" in parts:
        parts = _wild_tables(draw, parts)
    for _ in range(draw.choice((1, 1, 3))):
        parts = change_members(draw, parts) if parts else parts
    return packed(parts)


def _wild_tables(draw: random.Random, parts: dict[str, bytes]) -> dict[str, bytes]:
    """Every page a table of entries that point to itself, to another, to nowhere."""
    mpns = struct.unpack(f"<{len(parts['mpns']) // 4}I", parts["mpns"])
    frames = bytearray()
    for mpn in mpns:
        target = draw.choice((mpn, draw.choice(mpns), 10, 11, 20, draw.getrandbits(40)))
        flags = draw.choice((1, 3, 7, 0x87, 0x37))
        frames += struct.pack("<Q", target << 12 | flags) * 512
    return parts | {"frames/0": bytes(frames)}


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
