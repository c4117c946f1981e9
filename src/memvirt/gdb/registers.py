# SPDX-License-Identifier: Apache-2.0
"""The registers that gdb sees, in its order, and the target description that names them.

The features are gdb's own (its manual, "i386 Features"), and one of ours with what systems
programmers look for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memvirt.vm.virtual_machine import VirtualMachine

_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
)  # fmt: skip
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_X87 = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_CONTROL = ("kernel_gs_base", "cr0", "cr2", "cr3", "cr4", "efer")


class RegisterRefused(Exception):
    """A register that cannot be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its name, size, type and feature for gdb, how it is read and written."""

    name: str
    bits: int
    kind: str
    feature: str
    read: Callable[[VirtualMachine], int]
    write: Callable[[VirtualMachine, int], None]

    @property
    def bytes(self) -> int:
        """Size in the packets of the protocol."""
        return self.bits // 8


def _processor(name: str) -> Callable[[VirtualMachine], int]:
    return lambda vm: vm.processor.get(name)


def _set_processor(name: str) -> Callable[[VirtualMachine, int], None]:
    return lambda vm, value: vm.processor.set(name, value)


def _debugging(name: str) -> Callable[[VirtualMachine], int]:
    def read(vm: VirtualMachine) -> int:
        debugging = vm.processor.debugging
        return 0 if debugging is None else debugging.get(name)

    return read


def _set_debugging(name: str) -> Callable[[VirtualMachine, int], None]:
    def write(vm: VirtualMachine, value: int) -> None:
        debugging = vm.processor.debugging
        if debugging is not None:
            debugging.set(name, value)

    return write


def _selector(name: str) -> Callable[[VirtualMachine], int]:
    return lambda vm: vm.processor.segment(name).selector


def _read_only(
    name: str, read: Callable[[VirtualMachine], int]
) -> Callable[[VirtualMachine, int], None]:
    """Takes the value that is there, as whoever writes all registers does; refuses another."""

    def write(vm: VirtualMachine, value: int) -> None:
        if read(vm) != value:
            raise RegisterRefused(f"{name} cannot be set from outside")

    return write


def _registers() -> tuple[Register, ...]:
    core, sse = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"
    made: list[Register] = []

    def add(
        name: str,
        bits: int,
        kind: str,
        feature: str,
        read: Callable[[VirtualMachine], int],
        write: Callable[[VirtualMachine, int], None] | None = None,
    ) -> None:
        made.append(Register(name, bits, kind, feature, read, write or _read_only(name, read)))

    for name in _GENERAL:
        kind = "data_ptr" if name in ("rbp", "rsp") else "int64"
        add(name, 64, kind, core, _processor(name), _set_processor(name))
    add("rip", 64, "code_ptr", core, _processor("rip"), _set_processor("rip"))
    add("eflags", 32, "i386_eflags", core, _processor("rflags"), _set_processor("rflags"))
    for name in _SEGMENTS:
        add(name, 32, "int32", core, _selector(name))
    for number in range(8):
        name = f"st{number}"
        add(name, 80, "i387_ext", core, _debugging(name), _set_debugging(name))
    for name in _X87:
        if name in ("fctrl", "fstat", "ftag"):
            add(name, 32, "int", core, _debugging(name), _set_debugging(name))
        else:  # of the last x87 instruction: not kept
            add(name, 32, "int", core, lambda vm: 0)
    for number in range(16):
        name = f"xmm{number}"
        add(name, 128, "vec128", sse, _debugging(name), _set_debugging(name))
    add("mxcsr", 32, "i386_mxcsr", sse, _debugging("mxcsr"), _set_debugging("mxcsr"))
    for name in ("fs_base", "gs_base"):
        segments = "org.gnu.gdb.i386.segments"
        add(name, 64, "int64", segments, _debugging(name), _set_debugging(name))
    for name in _CONTROL:
        read = _debugging(name) if name == "kernel_gs_base" else _processor(name)
        add(name, 64, "int64", "org.memvirt.control", read)
    return tuple(made)


REGISTERS = _registers()
"""All of them, in the order of packets ``g`` and ``G``, and by their numbers in ``p`` and ``P``."""

_TYPES = {
    "org.gnu.gdb.i386.core": '<flags id="i386_eflags" size="4">'
    + "".join(
        f'<field name="{name}" start="{bit}" end="{bit}"/>'
        for name, bit in (
            ("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9),
            ("DF", 10), ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19),
            ("VIP", 20), ("ID", 21),
        )
    )
    + "</flags>",
    "org.gnu.gdb.i386.sse": "".join(
        f'<vector id="{name}" type="{kind}" count="{count}"/>'
        for name, kind, count in (
            ("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16),
            ("v8i16", "int16", 8), ("v4i32", "int32", 4), ("v2i64", "int64", 2),
        )
    )
    + '<union id="vec128">'
    + "".join(
        f'<field name="{field}" type="{kind}"/>'
        for field, kind in (
            ("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"),
            ("v8_int16", "v8i16"), ("v4_int32", "v4i32"), ("v2_int64", "v2i64"),
            ("uint128", "uint128"),
        )
    )
    + "</union>"
    + '<flags id="i386_mxcsr" size="4">'
    + "".join(
        f'<field name="{name}" start="{bit}" end="{bit}"/>'
        for bit, name in enumerate(
            ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
        )
    )
    + '<field name="FZ" start="15" end="15"/></flags>',
}  # fmt: skip


def target_description() -> str:
    """``target.xml``."""
    features: dict[str, list[str]] = {}
    for register in REGISTERS:
        features.setdefault(register.feature, []).append(
            f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}"/>'
        )
    body = "\n".join(
        f'<feature name="{name}">{_TYPES.get(name, "")}\n' + "\n".join(lines) + "\n</feature>"
        for name, lines in features.items()
    )
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n'
        f'<target version="1.0">\n<architecture>i386:x86-64</architecture>\n{body}\n</target>\n'
    )


def read_register(vm: VirtualMachine, number: int) -> bytes:
    """The bytes of register ``number``, little-endian. Raises IndexError for one there is not."""
    if not 0 <= number < len(REGISTERS):
        raise IndexError(f"register {number}")
    register = REGISTERS[number]
    value = register.read(vm) & (1 << register.bits) - 1
    return value.to_bytes(register.bytes, "little")


def write_register(vm: VirtualMachine, number: int, content: bytes) -> None:
    """Set register ``number``.

    Raises IndexError for one there is not or a wrong length, RegisterRefused for one that cannot
    be set.
    """
    if not 0 <= number < len(REGISTERS) or len(content) != REGISTERS[number].bytes:
        raise IndexError(f"register {number} of {len(content)} bytes")
    REGISTERS[number].write(vm, int.from_bytes(content, "little"))
