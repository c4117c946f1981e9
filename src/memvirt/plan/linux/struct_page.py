# SPDX-License-Identifier: Apache-2.0
"""``struct page``: what the kernel notes of each page frame, by the offsets it tells itself.

Source: Linux, include/linux/mm_types.h and page-flags.h, and what admin-guide/kdump/vmcoreinfo.rst
says each exported number is for. Fields overlap (unions), so each is read only for pages whose
other fields say that it is in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .vmcoreinfo import KernelUnreadable, VmCoreInfo

Array = np.ndarray[Any, Any]
_SIZES = range(32, 257)
_TYPE_BITS = 0xFF00_0000  # from 6.12 a page's type is the top byte of a word, else single bits
_PAGE_TABLE_AFTER_BUDDY = 2  # PGTY_buddy, PGTY_offline, PGTY_table
_NO_TYPE = -1


def _signed32(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


@dataclass(frozen=True)
class StructPageLayout:
    """Offsets of fields, numbers of flags, and values of types. A value of None: this kernel has
    or tells none."""

    size: int
    flags: int
    reference_count: int
    map_count: int
    mapping: int
    lru: int
    private: int
    compound_head: int
    bit_lru: int
    bit_slab: int | None
    bit_swap_backed: int
    buddy: int
    offline: int | None
    page_table: int
    slab: int | None
    huge: int | None

    @classmethod
    def of(cls, information: VmCoreInfo) -> StructPageLayout:
        """Raises KernelUnreadable."""
        size = information.number("SIZE(page)", _SIZES[0], _SIZES[-1])
        if size % 8:
            raise KernelUnreadable(f"its struct page has {size} bytes, which is no multiple of 8")

        def offset(field: str, bytes_: int) -> int:
            return information.number(f"OFFSET(page.{field})", 0, size - bytes_)

        def bit(name: str) -> int:
            return information.number(f"NUMBER({name})", 0, 63)

        def value(name: str) -> int | None:
            number = information.numbers.get(f"NUMBER({name})")
            return None if number is None else _signed32(number)

        buddy = information.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", -(1 << 31), (1 << 32) - 1)
        return cls(
            size, offset("flags", 8), offset("_refcount", 4), offset("_mapcount", 4),
            offset("mapping", 8), offset("lru", 16), offset("private", 8),
            offset("compound_head", 8), bit("PG_lru"),
            bit("PG_slab") if "NUMBER(PG_slab)" in information.numbers else None,
            bit("PG_swapbacked"), _signed32(buddy), value("PAGE_OFFLINE_MAPCOUNT_VALUE"),
            _page_table_type(information.release, buddy), value("PAGE_SLAB_MAPCOUNT_VALUE"),
            value("PAGE_HUGETLB_MAPCOUNT_VALUE"),
        )  # fmt: skip


def _page_table_type(release: str, buddy: int) -> int:
    """The ``_mapcount`` of page-table pages, which VMCOREINFO does not tell.

    Derived from that of free pages, which it tells (page-flags.h): from 6.12 types are numbers in
    the top byte, the buddy's, then offline, then table; in 6.11 they are bits from the top down;
    before, bits from 0x80 up that are *cleared*, where table was 0x400 until 5.8 and 0x200 since.
    """
    buddy &= 0xFFFF_FFFF
    if buddy & ~_TYPE_BITS == 0:
        return _signed32(buddy + (_PAGE_TABLE_AFTER_BUDDY << 24))
    bit = ~buddy & 0xFFFF_FFFF
    if bit >= 1 << 24:
        return _signed32(~(bit >> 2))
    numbers = release.split("-", maxsplit=1)[0].split(".")
    version = tuple(int(part) for part in numbers[:2] if part.isdigit())
    return _signed32(~(bit << 3 if version < (5, 9) else bit << 2))


class StructPages:
    """The fields of consecutive page frames, as arrays."""

    def __init__(self, layout: StructPageLayout, content: Array, present: Array) -> None:
        """``content``: shape (n, layout.size); ``present``: which of them there are."""
        self.layout, self.present = layout, present
        self._content = content

    def _word(self, offset: int, kind: str, size: int) -> Array:
        return np.ascontiguousarray(self._content[:, offset : offset + size]).view(kind)[:, 0]

    @property
    def flags(self) -> Array:
        return self._word(self.layout.flags, "<u8", 8)

    @property
    def reference_count(self) -> Array:
        return self._word(self.layout.reference_count, "<i4", 4)

    @property
    def type(self) -> Array:
        """``_mapcount``, which holds the type of pages that no process maps."""
        return self._word(self.layout.map_count, "<i4", 4)

    @property
    def mapping(self) -> Array:
        return self._word(self.layout.mapping, "<u8", 8)

    @property
    def private(self) -> Array:
        return self._word(self.layout.private, "<u8", 8)

    @property
    def lru_next(self) -> Array:
        return self._word(self.layout.lru, "<u8", 8)

    @property
    def compound_head(self) -> Array:
        """Address of the first page's struct page plus 1 for the other pages of an allocation of
        several; else an even number."""
        return self._word(self.layout.compound_head, "<u8", 8)

    def has_flag(self, bit: int | None) -> Array:
        """Pages with that flag; none if the kernel has no such flag."""
        if bit is None:
            return np.zeros(self.present.size, bool)
        return (self.flags >> np.uint64(bit) & np.uint64(1)).astype(bool)

    def is_type(self, value: int | None) -> Array:
        """Pages of that type; none if the kernel has no such type."""
        if value is None:
            return np.zeros(self.present.size, bool)
        kind = self.type
        if value & ~_TYPE_BITS & 0xFFFF_FFFF == 0:  # the lower bytes are somebody else's
            kind, value = kind & np.int32(-1 << 24), _signed32(value)
        return kind == value
