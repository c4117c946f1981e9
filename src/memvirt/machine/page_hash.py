# SPDX-License-Identifier: Apache-2.0
"""The hash of a page: XXH3-64 of its 4096 bytes, without a seed, in vector instructions.

Specification: "XXH3 algorithm", doc/xxhash_spec.md of the xxHash project, for inputs over 240
bytes: eight lanes take 64 bytes (a stripe) at a time, each with the product of the halves of its
word, the word first mixed with 64 bits of a secret. Unlike XXH64 it multiplies 32 bits by 32, which
processors do for several lanes at once: on an AMD EPYC 140 to 170 ns a page against 370, as fast as
the page can be read from memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from memvirt.address import PAGE_BYTES

# The secret of the specification ("default secret"), 192 bytes.
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_AVALANCHE = 0x165667919E3779F9
_LANES = 8
_FIRST = (_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1)
_STRIPE_BYTES = 8 * _LANES
_STRIPES = PAGE_BYTES // _STRIPE_BYTES
_STRIPES_PER_BLOCK = (len(_SECRET) - _STRIPE_BYTES) // 8  # then the lanes are scrambled
_SCRAMBLE_AT = len(_SECRET) - _STRIPE_BYTES
_LAST_STRIPE_AT = len(_SECRET) - _STRIPE_BYTES - 7
_MERGE_AT = 11
_NEIGHBOUR = (1, 0, 3, 2, 5, 4, 7, 6)  # each lane's word is added to the lane beside it
_WORD_MASK, _P32_MASK = 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF


def _key(at: int) -> list[int]:
    """Eight words of the secret from byte ``at`` on."""
    return [int.from_bytes(_SECRET[at + 8 * i : at + 8 * i + 8], "little") for i in range(_LANES)]


def _stripe_key(stripe: int) -> list[int]:
    last = stripe == _STRIPES - 1
    return _key(_LAST_STRIPE_AT if last else 8 * (stripe % _STRIPES_PER_BLOCK))


def _ends_block(stripe: int) -> bool:
    return stripe % _STRIPES_PER_BLOCK == _STRIPES_PER_BLOCK - 1 and stripe < _STRIPES - 1


class _Lanes:
    """The eight lanes as instructions that ``builder`` adds."""

    _word, _double = ir.IntType(64), ir.IntType(128)
    _vector = ir.VectorType(ir.IntType(64), _LANES)
    _order = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), _NEIGHBOUR)

    def __init__(self, builder: Any, address: Any) -> None:
        self._builder = builder
        self._address = address
        self.lanes: Any = ir.Constant(self._vector, _FIRST)

    def _all(self, word: int) -> Any:
        return ir.Constant(self._vector, [word] * _LANES)

    def take(self, stripe: int) -> None:
        """Take the stripe with this number."""
        builder = self._builder
        at = builder.add(self._address, self._word(stripe * _STRIPE_BYTES))
        data = builder.load(builder.inttoptr(at, self._vector.as_pointer()), align=1)
        mixed = builder.xor(data, ir.Constant(self._vector, _stripe_key(stripe)))
        low, high = builder.and_(mixed, self._all(_P32_MASK)), builder.lshr(mixed, self._all(32))
        undefined = ir.Constant(self._vector, ir.Undefined)
        beside = builder.shuffle_vector(data, undefined, self._order)
        self.lanes = builder.add(builder.add(self.lanes, beside), builder.mul(low, high))

    def scramble(self) -> None:
        """What follows each block of stripes."""
        builder = self._builder
        lanes = builder.xor(self.lanes, builder.lshr(self.lanes, self._all(47)))
        lanes = builder.xor(lanes, ir.Constant(self._vector, _key(_SCRAMBLE_AT)))
        self.lanes = builder.mul(lanes, self._all(_P32_1))

    def merge(self) -> Any:
        """The hash."""
        builder, word = self._builder, self._word
        result = word(PAGE_BYTES * _P64_1 & _WORD_MASK)
        keys = _key(_MERGE_AT)
        for lane in range(0, _LANES, 2):
            one, other = (
                builder.xor(builder.extract_element(self.lanes, ir.IntType(32)(i)), word(keys[i]))
                for i in (lane, lane + 1)
            )
            double = self._double
            product = builder.mul(builder.zext(one, double), builder.zext(other, double))
            high = builder.trunc(builder.lshr(product, double(64)), word)
            result = builder.add(result, builder.xor(builder.trunc(product, word), high))
        result = builder.xor(result, builder.lshr(result, word(37)))
        result = builder.mul(result, word(_AVALANCHE))
        return builder.xor(result, builder.lshr(result, word(32)))


def _hash_page(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = _Lanes(builder, args[0])
        for stripe in range(_STRIPES):
            lanes.take(stripe)
            if _ends_block(stripe):
                lanes.scramble()
        return lanes.merge()

    return types.uint64(types.int64), codegen


# XXH3-64 of the 4096 bytes at a host address.
hash_page = cast(Callable[[int], np.uint64], intrinsic(_hash_page))

if config.DISABLE_JIT:

    def hash_page(address: int) -> np.uint64:
        words = np.frombuffer(ctypes.string_at(int(address), PAGE_BYTES), "<u8")
        lanes = np.array(_FIRST, np.uint64)
        for stripe, data in enumerate(words.reshape(_STRIPES, _LANES)):
            mixed = data ^ np.array(_stripe_key(stripe), np.uint64)
            product = (mixed & np.uint64(_P32_MASK)) * (mixed >> np.uint64(32))
            lanes = lanes + data[list(_NEIGHBOUR)] + product
            if _ends_block(stripe):
                lanes ^= (lanes >> np.uint64(47)) ^ np.array(_key(_SCRAMBLE_AT), np.uint64)
                lanes *= np.uint64(_P32_1)
        mixed_lanes = [
            lane ^ key for lane, key in zip(lanes.tolist(), _key(_MERGE_AT), strict=True)
        ]
        result = PAGE_BYTES * _P64_1
        for one, other in zip(mixed_lanes[::2], mixed_lanes[1::2], strict=True):
            product = one * other
            result += (product & _WORD_MASK) ^ (product >> 64)
        result &= _WORD_MASK
        result = (result ^ (result >> 37)) * _AVALANCHE & _WORD_MASK
        return np.uint64(result ^ (result >> 32))
