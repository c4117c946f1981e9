# SPDX-License-Identifier: Apache-2.0
"""Page classes and savings against a naive count; conservation; independent dump writers."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvirt.machine.similarity import PATCH_HEADER, RUN_HEADER, block_keys, patch_sizes
from memvirt.plan.content.analysis import Analysis, Share, analyze, stretches
from memvirt.plan.content.page_file import PageFile
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.dumps.dump import Dump, DumpError
from memvirt.plan.executor import InProcess

PAGE = 4096


def quiet(_: str) -> Any:
    return lambda done, total: None


def run(*paths: Path, **options: Any) -> Analysis:
    return analyze(list(paths), InProcess(), quiet, **options)


def content(random: np.random.Generator, pages: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pages of every kind: zero, copies from a small pool, changed copies, text, noise."""
    out = np.zeros((pages, PAGE), np.uint8)
    pool = np.random.default_rng(7).integers(0, 256, (8, PAGE), dtype=np.uint8)
    for row, kind in enumerate(random.integers(0, 5, pages)):
        if kind == 1:
            out[row] = pool[random.integers(0, 8)]
        elif kind == 2:
            out[row] = pool[random.integers(0, 8)]
            at = random.integers(0, PAGE, 20)
            out[row, at] ^= random.integers(1, 256, 20, dtype=np.uint8)
        elif kind == 3:
            out[row] = np.resize(random.integers(97, 123, 40, dtype=np.uint8), PAGE)
        elif kind == 4:
            out[row] = random.integers(0, 256, PAGE, dtype=np.uint8)
    return out


def dumps(folder: Path, seed: int, counts: list[int]) -> list[Path]:
    random = np.random.default_rng(seed)
    paths = []
    for number, count in enumerate(counts):
        path = folder / f"vm{number}.raw"
        path.write_bytes(content(random, count).tobytes())
        paths.append(path)
    return paths


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_every_page_is_counted_once_and_nothing_is_saved_twice(
    tmp_path: Path, seed: int, counts: list[int]
) -> None:
    paths = dumps(tmp_path, seed, counts)
    found = run(*paths)
    # The oracle: pages as bytes in a dictionary.
    pages = [p.read_bytes()[i : i + PAGE] for p in paths for i in range(0, p.stat().st_size, PAGE)]
    times = Counter(pages)
    zeroes = times.pop(bytes(PAGE), 0)
    assert found.pages == len(pages) == sum(found.classes.values())
    assert found.classes["zero"] == zeroes
    assert found.classes["equal"] == sum(times.values()) - len(times)
    for vm, count in zip(found.vms, counts, strict=True):
        assert sum(vm.classes.values()) == vm.pages == count
    saved = found.savings
    assert saved.sharing == max(zeroes - 1, 0) + found.classes["equal"]
    slots = [next(s for s in (1024, 2048, PAGE) if size <= s or s == PAGE)
             for size in (len(lz4.block.compress(p, store_size=False)) for p in times)]  # fmt: skip
    alone = sum((PAGE - s) * n for s, n in zip(slots, times.values(), strict=True))
    assert saved.compression == pytest.approx((alone + zeroes * 3072) / PAGE)
    assert 0 <= saved.sharing <= saved.together <= found.pages
    assert saved.patching <= saved.together + 1e-9
    assert saved.compression <= saved.together + 1


def test_classes_of_pages_add_up_to_the_savings(tmp_path: Path) -> None:
    paths = dumps(tmp_path, 3, [200, 150, 100])
    with PageFile(tmp_path / "pages.parquet", ["a", "b", "c"]) as file:
        found = run(*paths, on_pages=file)
    table = pq.read_table(tmp_path / "pages.parquet").to_pydict()
    assert len(set(zip(table["vm"], table["ppn"], strict=True))) == found.pages == 450
    assert Counter(table["class"]) == Counter(
        {name: count for name, count in found.classes.items() if count}
    )
    kept = sum(table["kept_bytes"]) / PAGE
    assert found.pages - kept - 1 == pytest.approx(found.savings.together)  # one page of zeroes
    by_page = {(v, p): c for v, p, c in zip(table["vm"], table["ppn"], table["class"], strict=True)}
    memory = dict(zip("abc", (path.read_bytes() for path in paths), strict=True))
    for vm, ppn, kind, other, other_ppn in zip(
        *(table[n] for n in ("vm", "ppn", "class", "same_as_vm", "same_as_ppn")), strict=True
    ):
        if kind in ("equal", "similar"):
            mine = memory[vm][ppn * PAGE : ppn * PAGE + PAGE]
            its = memory[other][other_ppn * PAGE : other_ppn * PAGE + PAGE]
            assert (mine == its) is (kind == "equal")
        if kind == "similar":  # what it is patched against is kept whole
            assert by_page[other, other_ppn] == "other"
    assert found.classes["similar"] > 20


def test_who_may_share(tmp_path: Path) -> None:
    for folder in ("red", "blue"):
        (tmp_path / folder).mkdir()
    one = np.random.default_rng(1).integers(0, 256, (10, PAGE), dtype=np.uint8).tobytes()
    paths = [tmp_path / "red" / "a", tmp_path / "red" / "b", tmp_path / "blue" / "c"]
    for path in paths:
        path.write_bytes(one)
    equal = {share: run(*paths, share=share).classes["equal"] for share in Share}
    assert equal == {Share.ALL: 20, Share.FOLDER: 10, Share.VM: 0}
    assert run(*paths, share=Share.FOLDER).partners == (("a", "b", 10),)


def test_partners_are_those_with_most_in_common(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    common, other = (random.integers(0, 256, (30, PAGE), dtype=np.uint8) for _ in range(2))
    for name, parts in {
        "a": (common[:30], other[:2]), "b": (common[:30], other[2:4]), "c": (common[:5], other[:2]),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(np.concatenate(parts).tobytes())
    found = run(*(tmp_path / name for name in "abc"))
    assert found.partners == (("a", "b", 30), ("a", "c", 7), ("b", "c", 5))


def test_sharing_curve_of_osdi_2002(tmp_path: Path) -> None:
    """Waldspurger, section 4.4: with identical guests the shared part rises with their number and
    levels off near the part that is common (67 % there); one VM alone shares zero pages."""
    pages, common, zero = 200, 0.6, 0.07
    random = np.random.default_rng(2)
    same = random.integers(0, 256, (int(pages * common), PAGE), dtype=np.uint8)
    paths, reclaimed = [], []
    for number in range(10):
        own = random.integers(0, 256, (pages, PAGE), dtype=np.uint8)
        own[: same.shape[0]] = same
        own[pages - int(pages * zero) :] = 0
        path = tmp_path / f"vm{number}"
        path.write_bytes(own.tobytes())
        paths.append(path)
        if number in (0, 1, 4, 9):
            found = run(*paths)
            reclaimed.append(found.savings.sharing / found.pages)
    assert reclaimed == sorted(reclaimed)
    assert reclaimed[0] == pytest.approx(zero - 1 / pages)
    assert reclaimed[-1] == pytest.approx(0.9 * common + zero, abs=0.01)


@given(st.integers(0, 10_000), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_size_of_a_patch(seed: int, changes: int) -> None:
    """Against a naive encoder, byte by byte."""
    random = np.random.default_rng(seed)
    page, other = (random.integers(0, 256, (1, PAGE), dtype=np.uint8) for _ in range(2))
    other[0] = page[0]
    at = random.integers(0, PAGE, changes)
    other[0, at] += np.uint8(1)
    size, end = PATCH_HEADER, None
    for byte in range(PAGE):
        if page[0, byte] != other[0, byte]:
            near = end is not None and byte - end <= RUN_HEADER
            size += byte - end if near and end is not None else RUN_HEADER + 1
            end = byte
    assert patch_sizes(page, other)[0] == min(size, PAGE + 1)
    assert patch_sizes(page, other, 100)[0] == min(size, 101)


def test_keys_of_blocks() -> None:
    pages = np.zeros((3, PAGE), np.uint8)
    pages[1, 64 * 5] = pages[2, 64 * 5] = 1
    keys = block_keys(pages, (5, 6))
    assert keys[0].tolist() == [0, 0]
    assert keys[1, 0] == keys[2, 0] != 0


# Formats -------------------------------------------------------------------------------------


def elf(path: Path, segments: list[tuple[int, bytes]]) -> None:
    head = 64 + 56 * len(segments)
    table, body = b"", b""
    for address, data in segments:
        table += struct.pack(
            "<IIQQQQQQ", 1, 0, head + len(body), 0, address, len(data), len(data), 0
        )
        body += data
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    path.write_bytes(
        ident
        + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
        + table
        + body
    )


def lime(path: Path, ranges: list[tuple[int, bytes]]) -> None:
    path.write_bytes(
        b"".join(
            struct.pack("<IIQQQ", 0x4C694D45, 1, at, at + len(data) - 1, 0) + data
            for at, data in ranges
        )
    )


def kdump(
    path: Path, ranges: list[tuple[int, bytes]], *, flat: bool,
    pack: Callable[[bytes], bytes] = zlib.compress, flag: int = 1,
) -> None:  # fmt: skip
    """Every second page is packed; one that does not shrink is stored as it is."""
    pages = [(at // PAGE + i // PAGE, data[i : i + PAGE]) for at, data in ranges
             for i in range(0, len(data), PAGE)]  # fmt: skip
    top = max(ppn for ppn, _ in pages) + 1
    bits = np.zeros(-(-top // (8 * PAGE)) * 8 * PAGE, np.uint8)
    bits[[ppn for ppn, _ in pages]] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    head = bytearray(PAGE)
    head[:12] = b"KDUMP   " + struct.pack("<i", 6)
    struct.pack_into("<IiiII", head, 424, 1, PAGE, 1, 2 * len(bitmap) // PAGE, top)
    sub = bytearray(PAGE)
    struct.pack_into("<Qii11Q", sub, 0, 0, 1, 0, *([0] * 10), top)
    pieces = [
        (0, bytes(head)),
        (PAGE, bytes(sub)),
        (2 * PAGE, bitmap),
        (2 * PAGE + len(bitmap), bitmap),
    ]
    at = 2 * PAGE + 2 * len(bitmap)
    table, body, data_at = b"", b"", at + 24 * len(pages)
    for number, (_, page) in enumerate(pages):
        packed = pack(page) if number % 2 else page
        flags = flag if packed != page else 0
        table += struct.pack("<qIIQ", data_at + len(body), len(packed), flags, 0)
        body += packed
    pieces += [(at, table), (data_at, body)]
    if not flat:
        path.write_bytes(b"".join(data for _, data in pieces))
        return
    out = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    out = out.ljust(PAGE, b"\0")
    for offset, data in reversed(pieces):  # in any order
        out += struct.pack(">qq", offset, len(data)) + data
    path.write_bytes(out + struct.pack(">qq", -1, -1))


def everything(dump: Dump) -> dict[int, bytes]:
    ppns = dump.ppns(0, dump.pages).tolist()
    return dict(zip(ppns, (page.tobytes() for page in dump.read(0, dump.pages)), strict=True))


LOW = content(np.random.default_rng(1), 40).tobytes()
HIGH = content(np.random.default_rng(2), 24).tobytes()
RANGES = [(0, LOW), (1 << 32, HIGH)]
WRITERS: dict[str, Any] = {
    "elf": elf, "lime": lime, "kdump": lambda p, r: kdump(p, r, flat=False),
    "flat": lambda p, r: kdump(p, r, flat=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_formats_hold_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, RANGES)
    dump = open_dump(path)
    pages = everything(dump)
    assert dump.pages == 64
    for at, data in RANGES:
        for i in range(0, len(data), PAGE):
            assert pages[at // PAGE + i // PAGE] == data[i : i + PAGE]
    assert dump.position((1 << 20) + 3) == 43
    assert dump.position(41) == -1
    assert dump.read(38, 4).tobytes() == LOW[-2 * PAGE :] + HIGH[: 2 * PAGE]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_a_dump_that_is_cut_off_is_one_line(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    WRITERS[name](path, RANGES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part) | 1])
    with pytest.raises(DumpError, match=name) as caught:
        everything(open_dump(path))
    assert "\n" not in str(caught.value)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(WRITERS)), st.integers(0, 600), st.integers(0, 255))
def test_damaged_headers_never_end_in_anything_else(
    tmp_path: Path, name: str, at: int, value: int
) -> None:
    path = tmp_path / f"{name}-{at}-{value}"
    WRITERS[name](path, [(0, LOW[: 4 * PAGE])])
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)
    try:
        dump = open_dump(path)
        if dump.pages < 10_000:
            everything(dump)
    except DumpError as error:
        assert str(path) in str(error)
    path.unlink()


def test_holes_of_a_sparse_dump_are_zero_pages_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # 64 GiB
        file.seek(1 << 35)
        file.write(b"x" * PAGE)
    found = run(path)
    assert found.pages == 1 << 24
    assert found.classes["zero"] == (1 << 24) - 1
    parts = list(stretches(open_dump(path)))
    assert len(parts) == 4  # of 16 GiB each
    assert sum(pages for _, pages in parts) == found.pages


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 1 << 16))
def test_parts_of_a_dump_are_whole_and_bounded(data: list[bool], rest: int) -> None:
    """Of a dump of whole parts with data or without, in any order."""
    part = 1 << 16

    class Sparse:
        pages = part * (len(data) - 1) + rest

        def data_ranges(self, first: int, count: int) -> list[tuple[int, int]]:
            assert first % part == 0
            return [(first, count)] if data[first // part] else []

    dump: Any = Sparse()
    at = 0
    for first, count in stretches(dump):
        assert first == at
        at += count
        assert 0 < count <= 1 << 22
        assert sum(data[first // part : -(-at // part)]) <= 1
    assert at == dump.pages
