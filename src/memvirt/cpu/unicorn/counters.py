# SPDX-License-Identifier: Apache-2.0
"""What the engine's state record counts, as the statistics that any processor gives."""

from __future__ import annotations

from memvirt.cpu.processor import ProcessorStatistics

from .engine_state import EngineState
from .own_build import used_engine

_EXITS = (
    "page_fault", "exception", "syscall", "halt", "time", "io", "flush", "code", "need_frames",
    "need_page", "debug",
)  # fmt: skip
_COUNTERS = (
    "code_bytes", "engine_starts", "interrupts_delivered", "exceptions_delivered",
    "port_accesses", "mmio_accesses", "time_stamp_reads", "cpuid_reads", "code_drops",
    "tlb_flushes", "tlb_fills", "large_fills", "precise_writes",
)  # fmt: skip


def processor_statistics(state: EngineState, virtual_ns: int) -> ProcessorStatistics:
    """The counts of ``state``, at ``virtual_ns`` of virtual time."""
    return ProcessorStatistics(
        implementation=used_engine(),
        virtual_ns=virtual_ns,
        exits={name: int(getattr(state, f"exits_{name}")) for name in _EXITS},
        exceptions_by_vector={
            vector: int(count) for vector, count in enumerate(state.exceptions) if count
        },
        **{name: int(getattr(state, name)) for name in _COUNTERS},
    )
