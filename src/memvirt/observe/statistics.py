# SPDX-License-Identifier: Apache-2.0
"""Statistics of one VM as frozen records, as JSON, and as a short text for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memvirt.cpu.unicorn.own_build import used_engine
from memvirt.size import format_size
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.statistics import MemoryStatistics

_EXITS = (
    "page_fault", "exception", "syscall", "halt", "time", "io", "flush", "code", "need_frames",
    "need_page",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProcessorStatistics:
    """What one processor did since power-on. Exits are stops of the engine, by reason; those for
    frames, pages and I/O are the ones that enter Python. ``engine`` names the build that ran."""

    engine: str
    virtual_ns: int
    code_bytes: int
    engine_starts: int
    exits: dict[str, int]
    interrupts_delivered: int
    exceptions_delivered: int
    exceptions_by_vector: dict[int, int]
    port_accesses: int
    mmio_accesses: int
    time_stamp_reads: int
    cpuid_reads: int
    code_drops: int
    tlb_flushes: int


@dataclass(frozen=True, slots=True)
class VmStatistics:
    """Everything about one VM at one moment."""

    name: str
    paging: str
    memory_bytes: int
    outcome: str | None
    exit_status: int | None
    host_seconds: float | None
    memory: MemoryStatistics
    processor: ProcessorStatistics


def processor_statistics(vm: VirtualMachine) -> ProcessorStatistics:
    control = vm.vmm.control
    return ProcessorStatistics(
        engine=used_engine(),
        virtual_ns=vm.virtual_ns,
        code_bytes=int(control.code_bytes),
        engine_starts=int(control.engine_starts),
        exits={name: int(getattr(control, f"exits_{name}")) for name in _EXITS},
        interrupts_delivered=int(control.interrupts_delivered),
        exceptions_delivered=int(control.exceptions_delivered),
        exceptions_by_vector={
            vector: int(count) for vector, count in enumerate(control.exceptions) if count
        },
        port_accesses=int(control.port_accesses),
        mmio_accesses=int(control.mmio_accesses),
        time_stamp_reads=int(control.time_stamp_reads),
        cpuid_reads=int(control.cpuid_reads),
        code_drops=int(control.code_drops),
        tlb_flushes=int(control.tlb_flushes),
    )


def vm_statistics(vm: VirtualMachine) -> VmStatistics:
    """The statistics of ``vm``, stopped."""
    outcome = vm.outcome
    return VmStatistics(
        name=vm.name,
        paging=vm.paging.name.lower(),
        memory_bytes=vm.memory,
        outcome=None if outcome is None else outcome.reason.name.lower(),
        exit_status=None if outcome is None else outcome.exit_status,
        host_seconds=None if outcome is None else outcome.host_seconds,
        memory=vm.vmm.statistics(),
        processor=processor_statistics(vm),
    )


def as_json(statistics: VmStatistics) -> dict[str, Any]:
    """For ``json.dumps``."""
    return asdict(statistics)


def render(statistics: VmStatistics) -> str:
    """The figures a person asks first, in a few lines."""
    memory, processor = statistics.memory, statistics.processor
    page = 4096
    resident = memory.frames_guest + memory.shared
    tables = memory.frames_shadow + memory.frames_nested
    walks = f"{memory.walk_references / memory.walks:.2f}" if memory.walks else "-"
    exits = ", ".join(f"{name} {count:,}" for name, count in processor.exits.items() if count)
    host = "" if statistics.host_seconds is None else f" in {statistics.host_seconds:.2f} s"
    return "\n".join(
        (
            f"virtual time   {processor.virtual_ns / 1e9:.3f} s{host}, "
            f"{processor.code_bytes / 4e6:,.1f} M nominal instructions",
            f"guest memory   {format_size(memory.pages * page)}: "
            f"{format_size(resident * page)} resident, {memory.shared} pages shared, "
            f"{memory.compressed + memory.swapped} kept elsewhere, {memory.unmapped} unmapped",
            f"tables         {format_size(tables * page)} of {statistics.paging} page tables",
            f"translations   {memory.tlb_fills:,} TLB fills, {memory.hidden_faults:,} hidden and "
            f"{memory.true_faults:,} true faults, {memory.trace_faults:,} trace faults, "
            f"{walks} references a walk",
            f"exits          {exits or 'none'}",
            f"delivered      {processor.exceptions_delivered:,} exceptions, "
            f"{processor.interrupts_delivered:,} interrupts",
            f"engine         {processor.engine}",
        )
    )
