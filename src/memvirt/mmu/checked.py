# SPDX-License-Identifier: Apache-2.0
"""The checked build: every raw load and store of a kernel is looked up before it is made.

Selected by ``MEMVIRT_CHECKED=1`` when memvirt is imported; its kernels have a cache of their own
(``compiled_cache``). An access outside all registered ranges (``host_ranges``) is reported on
standard error, with its address, its size, the kernel that made it, the nearest ranges and the
Python stack that entered the kernel, and the process ends with SIGABRT: what the access would have
destroyed is not ours to go on with.

Kernels call ``memvirt_check_access`` by symbol, not by address: compiled code is cached from run
to run, while the table of ranges lies elsewhere each time.
"""

from __future__ import annotations

import ctypes
import os
import re
import traceback
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from .host_ranges import TABLE

_I64, _VOID = ir.IntType(64), ir.VoidType()
_CHECK_TYPE = ir.FunctionType(_VOID, [_I64, _I64, _I64, _I64])  # address, size, is store, site
_CHECK = "memvirt_check_access"


def kernel_name(symbol: str) -> str:
    """The dotted Python name in a kernel's mangled symbol; the symbol itself if there is none."""
    parts, rest = [], symbol.removeprefix("_ZN")
    while found := re.match(r"(\d+)", rest):
        length = int(found[1])
        parts.append(rest[found.end() : found.end() + length])
        rest = rest[found.end() + length :]
    return ".".join(parts) or symbol


def violation_report(address: int, size: int, is_store: bool, symbol: str) -> str:
    """What people read of an access outside all ranges, without the stack."""
    kind = "store" if is_store else "load"
    return (
        f"memvirt: wild {kind} of {size} bytes at {address & (1 << 64) - 1:#x} "
        f"by kernel {kernel_name(symbol)}\n  {TABLE.describe(address, size)}\n"
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
def _on_violation(address: int, size: int, is_store: int, site: int) -> None:
    """Report and end the process. A kernel cannot raise, and must not go on."""
    try:
        symbol = ctypes.string_at(site).decode(errors="replace")
        stack = "".join(traceback.format_stack())
        report = f"\n{violation_report(address, size, bool(is_store), symbol)}{stack}"
        os.write(2, report.encode(errors="replace"))
    finally:
        os.abort()


def _check_module(cell: int, on_violation: int) -> ir.Module:
    """``memvirt_check_access``: a binary search in the table that ``cell`` points to."""
    module = ir.Module("checked_access")
    module.triple = llvm.get_default_triple()
    function = ir.Function(module, _CHECK_TYPE, _CHECK)
    address, size, is_store, site = function.args
    entry, loop, search, found, inside, outside, done = (
        function.append_basic_block(name)
        for name in ("entry", "loop", "search", "found", "inside", "outside", "done")
    )

    def word(builder: ir.IRBuilder, at: Any) -> Any:
        return builder.load(builder.inttoptr(at, _I64.as_pointer()))

    builder = ir.IRBuilder(entry)
    table = word(builder, _I64(cell))
    count = word(builder, table)
    builder.branch(loop)

    # low: ranges known to start at or below the address; high: the first known to start above.
    builder.position_at_end(loop)
    low, high = builder.phi(_I64), builder.phi(_I64)
    low.add_incoming(_I64(0), entry)
    high.add_incoming(count, entry)
    builder.cbranch(builder.icmp_unsigned("<", low, high), search, found)

    builder.position_at_end(search)
    middle = builder.lshr(builder.add(low, high), _I64(1))
    start = word(builder, builder.add(table, builder.add(builder.shl(middle, _I64(4)), _I64(8))))
    below = builder.icmp_unsigned("<=", start, address)
    low.add_incoming(builder.select(below, builder.add(middle, _I64(1)), low), search)
    high.add_incoming(builder.select(below, high, middle), search)
    builder.branch(loop)

    builder.position_at_end(found)
    builder.cbranch(builder.icmp_unsigned("==", low, _I64(0)), outside, inside)

    builder.position_at_end(inside)
    end = word(builder, builder.add(table, builder.shl(low, _I64(4))))
    room = builder.sub(end, address)  # negative, so huge, if the address lies behind the range
    fits = builder.and_(
        builder.icmp_unsigned("<=", address, end), builder.icmp_unsigned(">=", room, size)
    )
    builder.cbranch(fits, done, outside)

    builder.position_at_end(outside)
    callback = builder.inttoptr(_I64(on_violation), _CHECK_TYPE.as_pointer())
    builder.call(callback, [address, size, is_store, site])
    builder.branch(done)

    builder.position_at_end(done)
    builder.ret_void()
    return module


def define_check() -> Any:
    """Compile ``memvirt_check_access`` and make its symbol known. Keep the result alive."""
    callback = ctypes.cast(_on_violation, ctypes.c_void_p).value
    assert callback is not None
    llvm.initialize_native_target()  # Numba does so with its first kernel: this may be sooner
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(opt=2)
    module = _check_module(int(TABLE.cell.ctypes.data), callback)
    compiled = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    compiled.finalize_object()
    llvm.add_symbol(_CHECK, compiled.get_function_address(_CHECK))
    return compiled


def emit_check(context: Any, builder: ir.IRBuilder, address: Any, size: Any, store: bool) -> None:
    """Emit, in a kernel that is being compiled, the check of one raw access."""
    module = builder.module
    check = module.globals.get(_CHECK) or ir.Function(module, _CHECK_TYPE, _CHECK)
    site = context.insert_const_string(module, builder.function.name)
    builder.call(check, [address, size, _I64(int(store)), builder.ptrtoint(site, _I64)])
