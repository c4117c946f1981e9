# SPDX-License-Identifier: Apache-2.0
"""Debugging from outside on the software processor.

Breakpoints are Unicorn's hooks on instructions, each on one address, so that all other code is
translated as ever; watchpoints are those of memvirt's own build of the engine
(``engine/source/memvirt_watch.c``). Both are put in place when the processor runs next: a debugger
sets and takes back its breakpoints at every stop, and code is translated anew only if there is a
difference by then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from typing import Any, Protocol

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from memvirt.address import GuestVirtualAddress, signed64, unsigned64
from memvirt.cpu.debugging import DebugStop, StopKind, Watchpoint
from memvirt.cpu.processor import ProcessorError
from memvirt.names import choose

from . import registers as reg
from .binding import hook_function, library
from .debug_hooks import NO_STEP, STEP_ARMED, on_instruction
from .engine_state import WATCH_HIT, EngineState
from .own_build import IS_OWN_BUILD
from .run import flush_translations_at

_READ, _WRITE = 1, 2
_EVERYWHERE = (1, 0)  # a range of Unicorn's that ends before it begins
_WORDS = {name: x86_const.__dict__[f"UC_X86_REG_{name.upper()}"] for name in (
    "mxcsr", *(f"xmm{i}" for i in range(16)),
)}  # fmt: skip
_WORDS |= {"fctrl": x86_const.UC_X86_REG_FPCW, "fstat": x86_const.UC_X86_REG_FPSW}
_WORDS |= {"ftag": x86_const.UC_X86_REG_FPTAG}
_PHYSICAL = tuple(x86_const.__dict__[f"UC_X86_REG_FP{i}"] for i in range(8))
_STACK = {f"st{i}": i for i in range(8)}  # positions from the top of the x87 stack


def _check(error: int, what: str) -> None:
    if error:
        raise ProcessorError(f"{what}: {unicorn.UcError(error)}")


class Debugged(Protocol):
    """What is needed of the processor."""

    state: EngineState
    registers: reg.RegisterFile

    @property
    def engine(self) -> Any:
        """The Unicorn engine. Raises ProcessorError once it is closed."""
        ...

    def get(self, name: str) -> int:
        """A register by its name."""
        ...

    def drop_all_code(self) -> None:
        """Drop all translated code."""
        ...


class UnicornDebugging:
    """The debugging of one ``UnicornProcessor``."""

    def __init__(self, processor: Debugged) -> None:
        self._processor = processor
        self._state = processor.state
        self._breakpoints: frozenset[GuestVirtualAddress] = frozenset()
        self._hooked: frozenset[tuple[int, int]] = frozenset()
        self._hooks: list[ctypes.c_size_t] = []
        self._watchpoints: frozenset[Watchpoint] = frozenset()
        self._watched: frozenset[Watchpoint] = frozenset()
        self._places: dict[str, Callable[[], int]] = {
            "fs_base": lambda: processor.registers.base + reg.FS + reg.SEGMENT_BASE,
            "gs_base": lambda: processor.registers.base + reg.GS + reg.SEGMENT_BASE,
            "kernel_gs_base": lambda: processor.registers.kernel_gs_base,
        }

    @property
    def has_watchpoints(self) -> bool:
        """True on memvirt's own build of the engine."""
        return IS_OWN_BUILD

    def set_breakpoints(self, gvas: Collection[GuestVirtualAddress]) -> None:
        """See ``ProcessorDebugging``."""
        self._breakpoints = frozenset(GuestVirtualAddress(unsigned64(gva)) for gva in gvas)

    def set_watchpoints(self, watchpoints: Collection[Watchpoint]) -> None:
        """See ``ProcessorDebugging``."""
        if watchpoints and not self.has_watchpoints:
            raise ProcessorError("watchpoints need memvirt's own build of the engine: make engine")
        for watch in watchpoints:
            if watch.size not in (1, 2, 4, 8) or watch.gva % watch.size:
                raise ProcessorError(
                    f"{watch.size} bytes at {watch.gva:#x} cannot be watched: 1, 2, 4 or 8, aligned"
                )
        self._watchpoints = frozenset(watchpoints)

    def step(self) -> None:
        """See ``ProcessorDebugging``."""
        self._state.step = STEP_ARMED
        self._state.step_rip = signed64(self._processor.get("rip"))

    def continue_(self) -> None:
        """See ``ProcessorDebugging``."""
        self._state.step = NO_STEP

    # For the processor -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Put hooks and watchpoints in place. Owed before the processor runs."""
        state = self._state
        stepping = state.step != NO_STEP
        wanted = frozenset({_EVERYWHERE} if stepping else {(gva, gva) for gva in self._breakpoints})
        if wanted != self._hooked:
            self._hook(wanted)
        if self._watchpoints != self._watched:
            self._watch()
        state.debugged = int(bool(stepping or self._hooked or self._watched))

    def take_stop(self) -> DebugStop:
        """Why the run loop left for the debugger; the next run goes on."""
        state = self._state
        rip = GuestVirtualAddress(self._processor.get("rip"))
        stop = DebugStop(StopKind.STEP, rip)
        if state.at_breakpoint:
            stop = DebugStop(StopKind.BREAKPOINT, rip)
        if state.watch_kind:
            kind = StopKind.READ if state.watch_kind == _READ else StopKind.WRITE
            stop = DebugStop(kind, GuestVirtualAddress(unsigned64(int(state.watch_gva))))
        state.at_breakpoint = state.watch_kind = 0
        state.step = NO_STEP
        return stop

    def _hook(self, ranges: frozenset[tuple[int, int]]) -> None:
        processor, add = self._processor, hook_function()
        handle = processor.engine._uch
        for token in self._hooks:
            _check(library.uc_hook_del(handle, token), "removing a hook")
        self._hooks.clear()
        callback, user = on_instruction.address, int(self._state.state_at)
        for begin, end in ranges:
            token = ctypes.c_size_t()
            error = add(
                handle, ctypes.byref(token), uc_const.UC_HOOK_CODE, callback, user,
                begin, end, 0,
            )  # fmt: skip
            _check(error, f"a breakpoint at {begin:#x}")
            self._hooks.append(token)
        self._hooked = ranges
        processor.drop_all_code()  # hooks are found when code is translated

    def _watch(self) -> None:
        handle = self._processor.engine._uch
        hit = ctypes.c_void_p(int(self._state.state_at) + WATCH_HIT)
        library.memvirt_unwatch(handle)
        for watch in self._watchpoints:
            kinds = (_READ if watch.reads else 0) | (_WRITE if watch.writes else 0)
            error = library.memvirt_watch(
                handle,
                ctypes.c_uint64(watch.gva),
                ctypes.c_uint64(watch.size),
                ctypes.c_int32(kinds),
                hit,
            )
            _check(error, f"a watchpoint at {watch.gva:#x}")
        self._watched = self._watchpoints
        flush_translations_at(int(self._state.state_at))

    # Registers ---------------------------------------------------------------------------------

    def _x87(self, name: str) -> int:
        """The engine's number of the register that ``name`` is, given where the top is."""
        top = self._processor.engine.reg_read(x86_const.UC_X86_REG_FPSW) >> 11 & 7
        return int(_PHYSICAL[(top + _STACK[name]) & 7])

    def get(self, name: str) -> int:
        """See ``ProcessorDebugging``."""
        engine = self._processor.engine
        if name in self._places:
            return int(ctypes.c_uint64.from_address(self._places[name]()).value)
        if name in _STACK:
            mantissa, exponent = engine.reg_read(self._x87(name))
            return int(mantissa) | int(exponent) << 64
        return int(engine.reg_read(choose(_WORDS, name, what="register")))

    def set(self, name: str, value: int) -> None:
        """See ``ProcessorDebugging``."""
        engine: Any = self._processor.engine
        if name in self._places:
            ctypes.c_uint64.from_address(self._places[name]()).value = value
        elif name in _STACK:
            engine.reg_write(self._x87(name), (value & (1 << 64) - 1, value >> 64))
        else:
            engine.reg_write(choose(_WORDS, name, what="register"), value)
