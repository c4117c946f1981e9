# SPDX-License-Identifier: Apache-2.0
"""LZO1X: each instruction by hand against its documented meaning; damage ends in one line."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.dumps.dump import DumpError
from memvirt.plan.dumps.lzo import LzoError, decompress

from .test_content import PAGE, content, everything, kdump

END = b"\x11\x00\x00"


def literals(data: bytes) -> bytes:
    """A first instruction that is a run of 4 to 238 literals."""
    assert 4 <= len(data) <= 238
    return bytes([17 + len(data)]) + data


def word(distance_bits: int, state: int) -> bytes:
    return (distance_bits << 2 | state).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("packed", "content"),
    [
        (literals(b"abcd") + END, b"abcd"),
        # 1LLDDDSS: length 5 + L, distance (H << 3) + D + 1, then S literals
        (literals(b"abcd") + bytes([0x80 | 1 << 5 | 3 << 2, 0]) + END, b"abcd" + b"abcdab"),
        (literals(b"abcd") + bytes([0x80 | 3 << 2 | 2, 0]) + b"XY" + END, b"abcd" + b"abcdaXY"),
        # 01LDDDSS: length 3 + L
        (literals(b"abcd") + bytes([0x40 | 1 << 2, 0]) + END, b"abcd" + b"cdc"),
        # 001LLLLL: length 2 + L, distance D + 1; longer: 33 + 255 for each zero + the byte
        (literals(b"abcd") + bytes([0x20 | 5]) + word(0, 0) + END, b"abcd" + b"d" * 7),
        (literals(b"abcd") + bytes([0x20, 9]) + word(0, 0) + END, b"abcd" + b"d" * 42),
        (literals(b"abcd") + bytes([0x20, 0, 0, 1]) + word(0, 0) + END, b"abcd" + b"d" * 544),
        # 0000DDSS after 1 to 3 literals: 2 bytes, distance (H << 2) + D + 1
        (bytes([17 + 3]) + b"abc" + bytes([1 << 2, 0]) + END, b"abc" + b"bc"),
        # a run of literals after a match without: 3 + L, and 18 + 255 a zero + the byte
        (literals(b"abcd") + bytes([0x40, 0, 2]) + b"vwxyz" + END, b"abcd" + b"ddd" + b"vwxyz"),
        (literals(b"abcd") + bytes([0x40, 0, 0, 4]) + b"z" * 22 + END, b"abcdddd" + b"z" * 22),
    ],
    ids=lambda value: "" if len(value) > 40 else value.hex(),
)  # fmt: skip
def test_instructions(packed: bytes, content: bytes) -> None:
    assert decompress(packed, 4096) == content


def test_the_far_match_after_a_run() -> None:
    """0000DDSS after a run of literals: 3 bytes, distance (H << 2) + D + 2049."""
    start = bytes(range(1, 239))
    long = bytes([0x20]) + bytes(7) + bytes([1]) + word(237, 0)  # 33 + 7 * 255 + 1 more bytes
    run = bytes([0, 5]) + b"r" * 23
    before = (start * 12)[: len(start) + 33 + 7 * 255 + 1] + b"r" * 23
    packed = literals(start) + long + run + bytes([2 << 2, 5]) + END
    at = len(before) - ((5 << 2) + 2 + 2049)
    assert decompress(packed, 4096) == before + before[at : at + 3]


def test_the_farthest_matches() -> None:
    """0001HLLL: length 2 + L, distance 16384 + (H << 14) + D."""
    start = bytes(range(1, 239))
    many = bytes([0x20]) + bytes(70) + bytes([1]) + word(237, 0)
    before = (start * 80)[: len(start) + 33 + 70 * 255 + 1]
    packed = literals(start) + many + bytes([0x10 | 3]) + word(7, 0) + END
    at = len(before) - 16384 - 7
    assert decompress(packed, 1 << 16) == before + before[at : at + 5]


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"", "ends inside"),
        (literals(b"abcd"), "ends inside"),
        (literals(b"abcd")[:-1], "ends inside"),
        (literals(b"abcd") + bytes([0x20, 0, 0]), "ends inside"),
        (literals(b"abcd") + bytes([0x40 | 4 << 2, 0]) + END, "before the page"),
        (literals(b"abcd") + bytes([0x20] + [0] * 20 + [1]) + word(0, 0) + END, "more than a page"),
        (literals(b"abcd") + END + b"x", "behind its end mark"),
    ],
)
def test_damage(packed: bytes, reason: str) -> None:
    with pytest.raises(LzoError, match=reason):
        decompress(packed, 4096)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_an_error_or_a_page(packed: bytes) -> None:
    try:
        assert len(decompress(packed, 4096)) <= 4096
    except LzoError as error:
        assert "\n" not in str(error)


# Against LZO's author's own packer ---------------------------------------------------------------

NAME_AT, ADLER32_OF_CONTENT = 33, 0x1


def lzop(data: bytes, level: int) -> list[tuple[int, bytes]]:
    """(size of content, packed bytes) of each block that lzop makes of up to 256 KiB; the packed
    bytes are the content where packing gains nothing."""
    out = subprocess.run(["lzop", f"-{level}", "-F", "-c"], input=data, capture_output=True,
                         check=True).stdout  # fmt: skip
    assert out.startswith(b"\x89LZO\0\r\n\x1a\n")
    flags = struct.unpack_from(">I", out, 17)[0]
    at = NAME_AT + 1 + out[NAME_AT] + 4  # name and checksum of the header
    blocks = []
    while (size := struct.unpack_from(">I", out, at)[0]) != 0:
        packed = struct.unpack_from(">I", out, at + 4)[0]
        at += 8 + 4 * (flags & ADLER32_OF_CONTENT)
        blocks.append((size, out[at : at + packed]))
        at += packed
    return blocks


def samples() -> list[bytes]:
    """Pages of every kind, and blocks in which matches lie as far back as the format can say."""
    random = np.random.default_rng(5)
    pages = content(random, 60)
    words = Path(__file__).read_bytes()
    far = random.integers(0, 256, 40_000, np.uint8).tobytes()
    return [*(page.tobytes() for page in pages), words, words * 9, bytes(200_000), far + far * 2]


@pytest.mark.skipif(shutil.which("lzop") is None, reason="needs lzop: make packages")
@pytest.mark.parametrize("level", [1, 3, 7, 9])
def test_what_lzop_packs_is_unpacked(level: int) -> None:
    compressed = 0
    for data in samples():
        at = 0
        for size, packed in lzop(data, level):
            if len(packed) < size:
                assert decompress(packed, size) == data[at : at + size]
                compressed += 1
            at += size
        assert at == len(data)
    assert compressed > 20


@pytest.mark.skipif(shutil.which("lzop") is None, reason="needs lzop: make packages")
def test_a_kdump_file_of_lzo_pages(tmp_path: Path) -> None:
    data = b"".join(page.tobytes() for page in content(np.random.default_rng(6), 23))
    data += b"ab" * (PAGE // 2)  # the last page, of odd number, is a packed one

    def pack(page: bytes) -> bytes:
        ((_, packed),) = lzop(page, 1)
        return packed if len(packed) < len(page) else page

    path = tmp_path / "lzo"
    kdump(path, [(0, data)], flat=False, pack=pack, flag=2)
    assert b"".join(everything(open_dump(path)).values()) == data
    damaged = bytearray(path.read_bytes())
    damaged[-len(END)] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DumpError, match=r"lzo: PPN 0x17 does not decompress \(LZO: "):
        everything(open_dump(path))
