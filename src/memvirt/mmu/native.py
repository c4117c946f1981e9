# SPDX-License-Identifier: Apache-2.0
"""Loads, stores and C calls on raw host addresses, for compiled kernels only.

The "hardware" works on bare memory: machine memory, page tables and the processor's register
file are reached by host address, so that C callbacks need only one pointer. Every word is a
*signed* 64-bit integer inside kernels: Numba turns ``uint64 | 1`` into int64 anyway, and with
masks applied after shifts the sign never matters. Callers guarantee the addresses are valid; a
checked build (``checked``) makes sure of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import config, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from memvirt.compiled import compiled
from memvirt.compiled_cache import CHECKED
from memvirt.state_record import Record, record_dtype

from . import interpreted

if CHECKED and not config.DISABLE_JIT:
    from .checked import define_check, emit_check

    _CHECK = define_check()

R = TypeVar("R", bound=Record)
_Load = Callable[[int], int]  # from a host address
_Store = Callable[[int, int], None]  # a word to a host address

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _load(bits: ir.IntType) -> Any:
    def function(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if CHECKED:
                emit_check(context, builder, args[0], _I64(bits.width // 8), False)
            value = builder.load(builder.inttoptr(args[0], bits.as_pointer()), align=1)
            return value if bits.width == 64 else builder.zext(value, _I64)

        return types.int64(types.int64), codegen

    return function


def _store(bits: ir.IntType) -> Any:
    def function(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if CHECKED:
                emit_check(context, builder, args[0], _I64(bits.width // 8), True)
            word = args[1] if bits.width == 64 else builder.trunc(args[1], bits)
            builder.store(word, builder.inttoptr(args[0], bits.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return function


def _copy(typing_context: Any, destination: Any, source: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if CHECKED:
            emit_check(context, builder, args[0], args[2], True)
            emit_check(context, builder, args[1], args[2], False)
        pointer = _I8.as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(args[0], pointer),
            builder.inttoptr(args[1], pointer),
            args[2],
            1,
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


load64 = cast(_Load, intrinsic(_load(_I64)))
load32 = cast(_Load, intrinsic(_load(_I32)))
load8 = cast(_Load, intrinsic(_load(_I8)))
store64 = cast(_Store, intrinsic(_store(_I64)))
store32 = cast(_Store, intrinsic(_store(_I32)))
store8 = cast(_Store, intrinsic(_store(_I8)))
copy_bytes = intrinsic(_copy)  # destination, source, count: ``memcpy`` between host addresses

if config.DISABLE_JIT:
    load64, load32, load8 = interpreted.load64, interpreted.load32, interpreted.load8
    store64, store32, store8 = interpreted.store64, interpreted.store32, interpreted.store8
    copy_bytes = interpreted.copy_bytes


@compiled
def load_signed32(address: int) -> int:
    """A 32-bit word, sign-extended."""
    word = load32(address)
    return word - (1 << 32) if word >> 31 else word


def _call(arguments: int, variadic: bool = False) -> Any:
    """A call of a C function ``int f(long, ...)`` by address, with ``arguments`` 64-bit words.

    A variadic callee takes its second word as a 32-bit integer (``uc_ctl``).
    """

    def function(typing_context: Any, target: Any, words: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [builder.extract_value(args[1], i) for i in range(arguments)]
            if variadic:
                values[1] = builder.trunc(values[1], _I32)
            fixed = [value.type for value in values[: 2 if variadic else arguments]]
            kind = ir.FunctionType(_I32, fixed, var_arg=variadic)
            result = builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
            return builder.sext(result, _I64)

        tuple_type = types.UniTuple(types.int64, arguments)
        return types.int64(types.int64, tuple_type), codegen

    return function


call_c1 = intrinsic(_call(1))
call_c3 = intrinsic(_call(3))
call_c5 = intrinsic(_call(5))
call_variadic2 = intrinsic(_call(2, variadic=True))
call_variadic4 = intrinsic(_call(4, variadic=True))


def _reference(description: type[R], checked: bool) -> Callable[[int], R]:
    if config.DISABLE_JIT:
        return interpreted.record_reference(record_dtype(description))
    record = from_dtype(record_dtype(description))

    def function(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if checked:
                emit_check(context, builder, args[0], _I64(record.size), True)
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return cast(Callable[[int], R], intrinsic(function))


def record_reference(description: type[R]) -> Callable[[int], R]:
    """A compiled function from a host address to the record of class ``description`` there."""
    return _reference(description, CHECKED)


def argument_reference(description: type[R]) -> Callable[[int], R]:
    """As ``record_reference``, for a C structure that a caller in C passes by address.

    It lies on that caller's stack, where no range can be registered, and is valid for the call.
    """
    return _reference(description, False)
