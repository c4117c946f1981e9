# SPDX-License-Identifier: Apache-2.0
"""What any processor is to the rest of memvirt.

A processor executes the code of one VM. It asks the VM's memory (``vmm``) for every translation it
needs, through ``vmm.translate.access`` or, if it walks tables itself, through the nested table; and
it drives the VM's platform, whose record it is given. Nothing above this folder knows which one
runs. ``docs/processor.md`` says how another one would be written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from memvirt.address import PhysicalPageNumber
from memvirt.cpu.debugging import DebugStop, ProcessorDebugging
from memvirt.errors import MemvirtError

if TYPE_CHECKING:
    from memvirt.platform.pc import Pc
    from memvirt.vmm.monitor import VirtualMachineMonitor

__all__ = [
    "ExitReason",
    "Processor",
    "ProcessorError",
    "ProcessorExit",
    "ProcessorFactory",
    "ProcessorStatistics",
    "SegmentState",
]


class ProcessorError(MemvirtError, RuntimeError):
    """The processor cannot do what it was asked; the message says why."""


_NO_PAGE = PhysicalPageNumber(0)


class ExitReason(Enum):
    """Why a processor stopped running guest code."""

    QUANTUM_END = "the quantum's virtual time is over"
    STOP_REQUESTED = "somebody asked it to stop"
    NEED_FRAMES = "the VM's reserve of frames is used up"
    NEED_PAGE = "a page must be brought back, or unshared"
    DEVICE = "a device of the platform wants the host's attention"
    BACKDOOR = "a call of the backdoor"
    BALLOON = "a call of the balloon device"
    HALTED = "halted, and no event of the platform will wake it"
    TRIPLE_FAULT = "triple fault"
    NO_FIRMWARE = "an event in real mode that only a BIOS would handle"
    MISCONFIGURED = "a nested page table entry is corrupt"
    DEBUG = "a step, a breakpoint or a watchpoint of a debugger"
    FAILED = "the processor itself failed"


@dataclass(frozen=True, slots=True)
class ProcessorExit:
    """One exit. The fields beyond ``reason`` have a meaning where their comment says so."""

    reason: ExitReason
    ppn: PhysicalPageNumber = _NO_PAGE  # NEED_PAGE
    write: bool = False  # NEED_PAGE: for a store
    vector: int = 0  # NO_FIRMWARE: of the event
    instruction_bytes: int = 0  # BACKDOOR, BALLOON: length of the IN, which RIP still points at
    debug: DebugStop | None = None  # DEBUG
    detail: str = ""  # TRIPLE_FAULT, MISCONFIGURED, FAILED: for the report


@dataclass(frozen=True, slots=True)
class SegmentState:
    """A segment register: selector, base address, limit in bytes, descriptor flags."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProcessorStatistics:
    """What one processor did since power-on. Exits are stops of the engine, by reason; those for
    memory in shadow or nested mode are in the VM's memory statistics. ``implementation`` says which
    processor ran, and whose build of it."""

    implementation: str
    virtual_ns: int
    code_bytes: int
    engine_starts: int
    exits: dict[str, int] = field(hash=False)
    interrupts_delivered: int
    exceptions_delivered: int
    exceptions_by_vector: dict[int, int] = field(hash=False)
    port_accesses: int
    mmio_accesses: int
    time_stamp_reads: int
    cpuid_reads: int
    code_drops: int
    tlb_flushes: int
    tlb_fills: int
    large_fills: int
    precise_writes: int


class Processor(Protocol):
    """The processor of one VM. Not thread-safe, but for ``request_stop``.

    After ``close`` every other call raises ProcessorError.
    """

    def run(self) -> ProcessorExit:
        """Run guest code until an exit.

        First drops what the VMM has made stale (``VirtualMachineMonitor.take_stale``). After
        NEED_FRAMES or NEED_PAGE the same instruction is tried again. Releases the GIL.
        """
        ...

    def set_quantum(self, nanoseconds: int) -> None:
        """Let the next runs end when so much virtual time has passed from now."""
        ...

    def end_quantum(self) -> None:
        """Let virtual time pass to the end of the quantum with nothing executed."""
        ...

    @property
    def virtual_ns(self) -> int:
        """Virtual time since power-on, what the guest waited for its pages included."""
        ...

    @property
    def halted_ns(self) -> int:
        """Virtual time skipped because there was nothing to do."""
        ...

    def request_stop(self) -> None:
        """Ask for one exit, STOP_REQUESTED, at the next block. May be called from any thread."""
        ...

    def get(self, name: str) -> int:
        """A register by its lower-case name: rax ... r15, rip, rflags, cr0, cr2, cr3, cr4, efer.

        Raises names.UnknownName (a ValueError) for a name that is none.
        """
        ...

    def set(self, name: str, value: int) -> None:
        """Set a register by name, while the processor is stopped."""
        ...

    def segment(self, name: str) -> SegmentState:
        """A segment or descriptor table register by lower-case name (cs, tr, gdtr, ...)."""
        ...

    def set_segment(self, name: str, state: SegmentState) -> None:
        """Load a segment register with its hidden part, unchecked: for boot code and snapshots."""
        ...

    def set_mode(self, *, long_mode: bool, code64: bool, protected: bool = True) -> None:
        """Begin in this mode, at privilege level 0 with flat segments."""
        ...

    @property
    def privilege_level(self) -> int:
        """CPL, 0 to 3."""
        ...

    @property
    def in_64_bit_code(self) -> bool:
        """True if CS is a 64-bit code segment in long mode."""
        ...

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        ...

    @property
    def debugging(self) -> ProcessorDebugging | None:
        """How a debugger outside the guest stops it; None if it cannot be debugged."""
        ...

    def statistics(self) -> ProcessorStatistics:
        """What it did since it was made."""
        ...

    def close(self) -> None:
        """Release the engine. Calling again does nothing."""
        ...


ProcessorFactory: TypeAlias = "Callable[[VirtualMachineMonitor, Pc], Processor]"
"""Makes the processor of a VM from its VMM and its PC (the array ``platform.pc.new_pc`` makes)."""
