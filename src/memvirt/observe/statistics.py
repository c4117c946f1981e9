# SPDX-License-Identifier: Apache-2.0
"""Statistics of one VM as frozen records, as JSON, and as a short text for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memvirt.cpu.processor import ProcessorStatistics
from memvirt.size import format_size
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.memory_statistics import MemoryStatistics

__all__ = ["VmStatistics", "as_json", "render", "vm_statistics"]


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
        processor=vm.processor.statistics(),
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
            f"{memory.compressed + memory.swapped + memory.stored} kept elsewhere, "
            f"{memory.unmapped} unmapped",
            f"tables         {format_size(tables * page)} of {statistics.paging} page tables",
            f"translations   {processor.tlb_fills:,} TLB fills, {memory.hidden_faults:,} hidden "
            f"and {memory.true_faults:,} true faults, {memory.trace_faults:,} trace faults, "
            f"{walks} references a walk",
            f"exits          {exits or 'none'}",
            f"delivered      {processor.exceptions_delivered:,} exceptions, "
            f"{processor.interrupts_delivered:,} interrupts",
            f"processor      {processor.implementation}",
        )
    )
