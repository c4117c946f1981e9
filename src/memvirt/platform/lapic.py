# SPDX-License-Identifier: Apache-2.0
"""Local APIC in xAPIC mode (Intel SDM vol. 3, "Advanced Programmable Interrupt Controller").

The timer counts a virtual bus clock of 1 GHz: one tick per nanosecond before the divider. The
legacy interrupt controllers reach the processor through LINT0 programmed as ExtINT (virtual
wire), or directly while the APIC is disabled in IA32_APIC_BASE. There is one processor, so an
inter-processor interrupt is delivered only if it addresses this APIC; INIT and start-up messages
are ignored. TSC-deadline mode and x2APIC are absent and must not be advertised in CPUID.
"""

from collections.abc import MutableSequence, Sequence
from typing import Annotated

import numpy as np

from memvirt.compiled import compiled
from memvirt.platform.clock import NEVER
from memvirt.state_record import Record, record_dtype

LAPIC_BASE = 0xFEE0_0000
BASE_BOOTSTRAP = 1 << 8
BASE_ENABLE = 1 << 11
VERSION = 0x0005_0014
"""Version 0x14, six local vector table entries."""

REG_ID = 0x020
REG_VERSION = 0x030
REG_TPR = 0x080
REG_PPR = 0x0A0
REG_EOI = 0x0B0
REG_LDR = 0x0D0
REG_DFR = 0x0E0
REG_SVR = 0x0F0
REG_ISR = 0x100
REG_TMR = 0x180
REG_IRR = 0x200
REG_ESR = 0x280
REG_ICR_LOW = 0x300
REG_ICR_HIGH = 0x310
REG_LVT_TIMER = 0x320
REG_LVT_LINT0 = 0x350
REG_LVT_ERROR = 0x370
REG_TIMER_INITIAL = 0x380
REG_TIMER_CURRENT = 0x390
REG_TIMER_DIVIDE = 0x3E0

# Indices into ``lvt``.
LVT_TIMER = 0
LVT_LINT0 = 3
LVT_LINT1 = 4
LVT_ERROR = 5
LVT_COUNT = 6
LVT_MASKED = 1 << 16
LVT_PERIODIC = 1 << 17
DELIVERY_MODE = 7 << 8
DELIVERY_NMI = 4 << 8
DELIVERY_EXTINT = 7 << 8
SVR_ENABLE = 1 << 8
ESR_SEND_ILLEGAL_VECTOR = 0x20
ESR_RECEIVE_ILLEGAL_VECTOR = 0x40
ESR_ILLEGAL_REGISTER = 0x80
NO_VECTOR = -1
MASK_32 = 0xFFFF_FFFF


class LapicState(Record):
    """State record; see the module docstring."""

    base_msr: int  # IA32_APIC_BASE
    id: int
    task_priority: int
    spurious: int  # SVR
    logical_destination: int
    destination_format: int
    error_status: int
    error_pending: int
    command_low: int
    command_high: int
    timer_initial: int
    timer_divide: int
    timer_start: int  # virtual ns at which the present period began
    timer_deadline: int  # virtual ns, NEVER when stopped
    nmi_pending: int
    lvt: Annotated[MutableSequence[int], np.int64, LVT_COUNT]
    request: Annotated[MutableSequence[int], np.int64, 8]  # IRR, 32 bits an element
    in_service: Annotated[MutableSequence[int], np.int64, 8]
    trigger_mode: Annotated[MutableSequence[int], np.int64, 8]


LAPIC_DTYPE = record_dtype(LapicState)


@compiled
def lapic_reset(lapic: LapicState) -> None:
    """As a PC's firmware leaves the bootstrap processor: enabled, LINT0 = ExtINT, LINT1 = NMI."""
    lapic.base_msr = LAPIC_BASE | BASE_ENABLE | BASE_BOOTSTRAP
    lapic.id = 0
    lapic.task_priority = 0
    lapic.spurious = SVR_ENABLE | 0xFF
    lapic.logical_destination = 0
    lapic.destination_format = MASK_32
    lapic.error_status = 0
    lapic.error_pending = 0
    lapic.command_low = 0
    lapic.command_high = 0
    lapic.timer_initial = 0
    lapic.timer_divide = 0
    lapic.timer_start = 0
    lapic.timer_deadline = NEVER
    lapic.nmi_pending = 0
    for i in range(LVT_COUNT):
        lapic.lvt[i] = LVT_MASKED
    lapic.lvt[LVT_LINT0] = DELIVERY_EXTINT
    lapic.lvt[LVT_LINT1] = DELIVERY_NMI
    for i in range(8):
        lapic.request[i] = 0
        lapic.in_service[i] = 0
        lapic.trigger_mode[i] = 0


@compiled
def _highest_vector(bits: Sequence[int]) -> int:
    for i in range(7, -1, -1):
        word = bits[i]
        if word != 0:
            for bit in range(31, -1, -1):
                if word >> bit & 1:
                    return i * 32 + bit
    return NO_VECTOR


@compiled
def lapic_processor_priority(lapic: LapicState) -> int:
    """PPR: the greater of the task priority and the class of the interrupt in service."""
    serving = max(_highest_vector(lapic.in_service), 0) & 0xF0
    if lapic.task_priority & 0xF0 >= serving:
        return lapic.task_priority
    return serving


@compiled
def _report_error(lapic: LapicState, bit: int) -> None:
    lapic.error_pending |= bit
    entry = lapic.lvt[LVT_ERROR]
    if entry & LVT_MASKED == 0 and entry & 0xFF >= 16:
        lapic.request[(entry & 0xFF) >> 5] |= 1 << (entry & 31)


@compiled
def lapic_accept(lapic: LapicState, vector: int) -> None:
    """Latch an edge-triggered fixed interrupt in IRR; vectors 0-15 are an error, not accepted."""
    if vector < 16:
        _report_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR)
        return
    lapic.request[vector >> 5] |= 1 << (vector & 31)
    lapic.trigger_mode[vector >> 5] &= ~(1 << (vector & 31))


@compiled
def lapic_accept_level(lapic: LapicState, vector: int) -> None:
    """As ``lapic_accept`` for a level-triggered interrupt, whose EOI the I/O APIC is told."""
    lapic_accept(lapic, vector)
    if vector >= 16:
        lapic.trigger_mode[vector >> 5] |= 1 << (vector & 31)


@compiled
def lapic_pending(lapic: LapicState) -> int:
    """The vector the APIC would deliver now, or -1 (SDM, "Interrupt Acceptance for Fixed")."""
    if lapic.base_msr & BASE_ENABLE == 0:
        return NO_VECTOR
    vector = _highest_vector(lapic.request)
    if vector != NO_VECTOR and vector & 0xF0 > lapic_processor_priority(lapic) & 0xF0:
        return vector
    return NO_VECTOR


@compiled
def lapic_acknowledge(lapic: LapicState) -> int:
    """Move the deliverable vector from IRR to ISR and return it; the spurious vector if none."""
    vector = lapic_pending(lapic)
    if vector == NO_VECTOR:
        return lapic.spurious & 0xFF
    bit = 1 << (vector & 31)
    lapic.request[vector >> 5] &= ~bit
    lapic.in_service[vector >> 5] |= bit
    return vector


@compiled
def lapic_accepts_extint(lapic: LapicState) -> int:
    """1 when the 8259A's INT reaches the processor: virtual wire, or APIC disabled."""
    if lapic.base_msr & BASE_ENABLE == 0:
        return 1
    return 1 if lapic.lvt[LVT_LINT0] & (LVT_MASKED | DELIVERY_MODE) == DELIVERY_EXTINT else 0


@compiled
def _divisor(lapic: LapicState) -> int:
    """Nanoseconds per timer count (SDM figure "Divide Configuration Register")."""
    code = lapic.timer_divide & 3 | lapic.timer_divide >> 1 & 4
    return 1 if code == 7 else 2 << code


@compiled
def _start_timer(lapic: LapicState, start: int) -> None:
    lapic.timer_start = start
    if lapic.timer_initial == 0:
        lapic.timer_deadline = NEVER
    else:
        lapic.timer_deadline = start + lapic.timer_initial * _divisor(lapic)


@compiled
def lapic_advance(lapic: LapicState, now: int) -> None:
    """Let the timer run to ``now``; expiries that pile up are one interrupt, as in hardware."""
    if now < lapic.timer_deadline:
        return
    entry = lapic.lvt[LVT_TIMER]
    if entry & LVT_PERIODIC:
        period = lapic.timer_initial * _divisor(lapic)
        _start_timer(lapic, lapic.timer_start + (now - lapic.timer_start) // period * period)
    else:
        lapic.timer_deadline = NEVER
    if entry & LVT_MASKED == 0:
        lapic_accept(lapic, entry & 0xFF)


@compiled
def lapic_next_deadline(lapic: LapicState) -> int:
    """Virtual ns at which the timer will raise an interrupt; ``NEVER`` if stopped or masked."""
    if lapic.lvt[LVT_TIMER] & LVT_MASKED:
        return NEVER
    return lapic.timer_deadline


@compiled
def _timer_current(lapic: LapicState, now: int) -> int:
    if lapic.timer_deadline == NEVER:
        return 0
    return lapic.timer_initial - (now - lapic.timer_start) // _divisor(lapic)


@compiled
def _is_addressed(lapic: LapicState) -> int:
    """1 when the interrupt command's destination includes this APIC (SDM, "IPI Destination")."""
    shorthand = lapic.command_low >> 18 & 3
    if shorthand != 0:
        return 1 if shorthand < 3 else 0
    destination = lapic.command_high >> 24 & 0xFF
    return lapic_is_destination(lapic, lapic.command_low & 0x800, destination)


@compiled
def lapic_is_destination(lapic: LapicState, logical_mode: int, destination: int) -> int:
    """1 when a message to ``destination``, physical or logical, is for this APIC."""
    if destination == 0xFF:
        return 1
    if logical_mode == 0:
        return 1 if destination == lapic.id else 0
    logical = lapic.logical_destination >> 24 & 0xFF
    if lapic.destination_format >> 28 & 15 == 15:
        return 1 if destination & logical else 0
    return 1 if destination >> 4 == logical >> 4 and destination & logical & 15 else 0


@compiled
def _send_command(lapic: LapicState) -> None:
    if _is_addressed(lapic) == 0:
        return
    mode = lapic.command_low & DELIVERY_MODE
    vector = lapic.command_low & 0xFF
    if mode == DELIVERY_NMI:
        lapic.nmi_pending = 1
    elif mode <= 1 << 8:
        if vector < 16:
            _report_error(lapic, ESR_SEND_ILLEGAL_VECTOR)
        else:
            lapic_accept(lapic, vector)


@compiled
def lapic_read(lapic: LapicState, offset: int, now: int) -> int:
    """32-bit register at ``offset`` (multiple of 16). Call ``lapic_advance`` first."""
    if offset & 15:
        return 0
    if REG_ISR <= offset < REG_TMR:
        return lapic.in_service[(offset - REG_ISR) >> 4]
    if REG_TMR <= offset < REG_IRR:
        return lapic.trigger_mode[(offset - REG_TMR) >> 4]
    if REG_IRR <= offset < REG_ESR:
        return lapic.request[(offset - REG_IRR) >> 4]
    if REG_LVT_TIMER <= offset <= REG_LVT_ERROR:
        return lapic.lvt[(offset - REG_LVT_TIMER) >> 4]
    if offset == REG_ID:
        return lapic.id << 24
    if offset == REG_VERSION:
        return VERSION
    if offset == REG_TPR:
        return lapic.task_priority
    if offset == REG_PPR:
        return lapic_processor_priority(lapic)
    if offset == REG_LDR:
        return lapic.logical_destination
    if offset == REG_DFR:
        return lapic.destination_format
    if offset == REG_SVR:
        return lapic.spurious
    if offset == REG_ESR:
        return lapic.error_status
    if offset == REG_ICR_LOW:
        return lapic.command_low
    if offset == REG_ICR_HIGH:
        return lapic.command_high
    if offset == REG_TIMER_INITIAL:
        return lapic.timer_initial
    if offset == REG_TIMER_CURRENT:
        return _timer_current(lapic, now)
    if offset == REG_TIMER_DIVIDE:
        return lapic.timer_divide
    if offset != REG_EOI and offset != 0x090 and offset != 0x0C0:
        _report_error(lapic, ESR_ILLEGAL_REGISTER)
    return 0


@compiled
def _write_spurious(lapic: LapicState, value: int) -> None:
    lapic.spurious = value & 0x3FF
    if value & SVR_ENABLE == 0:
        for i in range(LVT_COUNT):
            # SDM, "Local APIC State After It Has Been Software Disabled".
            lapic.lvt[i] |= LVT_MASKED


@compiled
def _write_lvt(lapic: LapicState, index: int, value: int) -> None:
    value &= 0x300FF if index == LVT_TIMER else 0x100FF if index == LVT_ERROR else 0x1A7FF
    if lapic.spurious & SVR_ENABLE == 0:
        value |= LVT_MASKED
    lapic.lvt[index] = value


@compiled
def _write_divide(lapic: LapicState, value: int, now: int) -> None:
    """Change the divider keeping the count: SDM allows it at any time."""
    counted = 0
    if lapic.timer_deadline != NEVER:
        counted = (now - lapic.timer_start) // _divisor(lapic)
    lapic.timer_divide = value & 0x0B
    if lapic.timer_deadline != NEVER:
        _start_timer(lapic, now - counted * _divisor(lapic))


@compiled
def lapic_end_of_interrupt(lapic: LapicState) -> int:
    """Write EOI: the level-triggered vector that the I/O APIC must be told of, or -1."""
    vector = _highest_vector(lapic.in_service)
    if vector == NO_VECTOR:
        return NO_VECTOR
    bit = 1 << (vector & 31)
    lapic.in_service[vector >> 5] &= ~bit
    return vector if lapic.trigger_mode[vector >> 5] & bit else NO_VECTOR


@compiled
def lapic_write(lapic: LapicState, offset: int, value: int, now: int) -> None:
    """Write the 32-bit register at ``offset``. Call ``lapic_advance`` first: expiries up to
    ``now`` belong to the old settings."""
    value &= MASK_32
    if offset & 15:
        return
    if REG_LVT_TIMER <= offset <= REG_LVT_ERROR:
        _write_lvt(lapic, (offset - REG_LVT_TIMER) >> 4, value)
    elif offset == REG_EOI:
        lapic_end_of_interrupt(lapic)
    elif offset == REG_TPR:
        lapic.task_priority = value & 0xFF
    elif offset == REG_ID:
        lapic.id = value >> 24
    elif offset == REG_LDR:
        lapic.logical_destination = value & 0xFF00_0000
    elif offset == REG_DFR:
        lapic.destination_format = value | 0x0FFF_FFFF
    elif offset == REG_SVR:
        _write_spurious(lapic, value)
    elif offset == REG_ESR:
        lapic.error_status = lapic.error_pending
        lapic.error_pending = 0
    elif offset == REG_ICR_HIGH:
        lapic.command_high = value & 0xFF00_0000
    elif offset == REG_ICR_LOW:
        lapic.command_low = value & 0x000C_CFFF
        _send_command(lapic)
    elif offset == REG_TIMER_INITIAL:
        lapic.timer_initial = value
        _start_timer(lapic, now)
    elif offset == REG_TIMER_DIVIDE:
        _write_divide(lapic, value, now)
