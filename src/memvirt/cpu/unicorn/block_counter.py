# SPDX-License-Identifier: Apache-2.0
"""What the engine calls at the begin of every block: as little machine code as can be.

Millions of blocks begin each second, and most only add their size to the count of code bytes. A
Numba callback spends more on its frame and on an inner call than on that, so this one function is
written in LLVM IR: add, compare with the deadline, return, or go on to ``on_deadline`` (hooks.py).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from .engine_state import ENGINE_DTYPE

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_HOOK = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I32, _I64])
_NAME = "on_block"


def _field(builder: ir.IRBuilder, record: Any, name: str) -> Any:
    """A pointer to a word of the engine's state at address ``record``."""
    address = builder.add(record, _I64(ENGINE_DTYPE.fields[name][1]))
    return builder.inttoptr(address, _I64.as_pointer())


def _module(on_deadline: int) -> str:
    module = ir.Module("block_counter")
    module.triple = llvm.get_default_triple()
    function = ir.Function(module, _HOOK, _NAME)
    handle, gva, size, state = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    count_at = _field(builder, state, "code_bytes")
    count = builder.add(builder.load(count_at), builder.zext(size, _I64))
    builder.store(count, count_at)
    deadline = builder.load(_field(builder, state, "deadline_code_bytes"))
    with builder.if_then(builder.icmp_signed(">=", count, deadline), likely=False):
        slow = builder.inttoptr(_I64(on_deadline), _HOOK.as_pointer())
        builder.call(slow, [handle, gva, size, state], tail=True)
    builder.ret_void()
    return str(module)


@cache
def _engine_for(on_deadline: int) -> Any:
    """The compiled module, kept for the life of the process."""
    target = llvm.Target.from_default_triple().create_target_machine(opt=2)
    parsed = llvm.parse_assembly(_module(on_deadline))
    compiled = llvm.create_mcjit_compiler(parsed, target)
    compiled.finalize_object()
    return compiled


def block_counter_address(on_deadline: int) -> int:
    """Address of a ``UC_HOOK_BLOCK`` callback that calls ``on_deadline`` when time is up.

    ``on_deadline`` is the address of a function of the same type.
    """
    return int(_engine_for(on_deadline).get_function_address(_NAME))
