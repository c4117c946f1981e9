# SPDX-License-Identifier: Apache-2.0
"""Virtual time: driven by the code the guest executes, not by the host's clock.

The engine counts the bytes of every block of code it begins; four bytes are one nominal
instruction, and one nominal instruction takes one nanosecond (a 1 GHz processor of one instruction
per cycle). A port access takes as long as on the ISA bus, so that loops which poll a timer do not
run for millions of turns; for the same reason ``rdtsc`` takes as long as one that a hypervisor
intercepts. ``hlt`` skips ahead to the next event. What the guest waits for its own pages
(``VmmState.stall_ns``) counts too. The same guest with the same mappings therefore sees the same
time in every run, on any host.
"""

from __future__ import annotations

from memvirt.compiled import compiled

from .engine_state import EngineState, engine_at, vmm_of

CODE_BYTES_PER_NANOSECOND_SHIFT = 2
PORT_ACCESS_NS = 500
TIME_STAMP_NS = 200


@compiled
def virtual_now(engine: EngineState) -> int:
    """Nanoseconds of virtual time since power-on; also the time-stamp counter."""
    busy = engine.code_bytes >> CODE_BYTES_PER_NANOSECOND_SHIFT
    return busy + engine.idle_ns + vmm_of(engine).stall_ns


@compiled
def virtual_now_at(state_at: int) -> int:
    """``virtual_now`` for Python, where handing over a record takes longer than all the rest."""
    return virtual_now(engine_at(state_at))


@compiled
def charge(engine: EngineState, nanoseconds: int) -> None:
    """Let time pass for something that an instruction does besides being executed.

    The deadlines are counts of code bytes: they come nearer by as much, or timers would be late and
    quanta too long in loops of such instructions.
    """
    engine.idle_ns += nanoseconds
    engine.time_deadline -= nanoseconds << CODE_BYTES_PER_NANOSECOND_SHIFT
    engine.deadline_code_bytes -= nanoseconds << CODE_BYTES_PER_NANOSECOND_SHIFT


@compiled
def code_bytes_until(engine: EngineState, deadline_ns: int) -> int:
    """The count of code bytes at which virtual time reaches ``deadline_ns``."""
    remaining = deadline_ns - virtual_now(engine)
    if remaining <= 0:
        return engine.code_bytes
    if remaining > 1 << 60:
        remaining = 1 << 60
    return engine.code_bytes + (remaining << CODE_BYTES_PER_NANOSECOND_SHIFT)
