# SPDX-License-Identifier: Apache-2.0
"""The state a boot protocol promises at the entry point, set in a processor."""

from __future__ import annotations

from memvirt.cpu.processor import Processor, SegmentState
from memvirt.platform.boot.image import InitialState, StartMode

_CODE_32, _CODE_64, _DATA = 0x00C0_9B00, 0x00A0_9B00, 0x00C0_9300  # a descriptor's second word


def set_start_state(processor: Processor, state: InitialState) -> None:
    """Set the registers, flat segments, the GDT and the mode of ``state``; no IDT, LDT or task."""
    long_mode = state.mode is StartMode.LONG_64
    for name in ("rip", "rsp", "rsi", "rbx", "rax", "cr0", "cr3", "cr4", "efer", "rflags"):
        processor.set(name, getattr(state, name))
    code_flags = _CODE_64 if long_mode else _CODE_32
    processor.set_segment("cs", SegmentState(state.code_selector, 0, 0xFFFF_FFFF, code_flags))
    data = SegmentState(state.data_selector, 0, 0xFFFF_FFFF, _DATA)
    for name in ("ds", "es", "ss", "fs", "gs"):
        processor.set_segment(name, data)
    processor.set_segment("gdtr", SegmentState(0, state.gdt_base, state.gdt_limit, 0))
    for name in ("idtr", "tr", "ldtr"):
        processor.set_segment(name, SegmentState(0, 0, 0, 0))
    processor.set_mode(long_mode=long_mode, code64=long_mode)
