# SPDX-License-Identifier: Apache-2.0
"""The PC's two 8259A interrupt controllers (Intel 8259A datasheet, order 231468).

Chip 0 is the master (ports 0x20, 0x21), chip 1 the slave (0xa0, 0xa1) on the master's input 2.
Edge/level control registers are at 0x4d0 and 0x4d1 (82371AB datasheet). As the datasheet
demands, an input must stay high until it is acknowledged: one that drops becomes a spurious
interrupt on level 7.
"""

from collections.abc import Sequence
from typing import Annotated

from memvirt.compiled import compiled
from memvirt.state_record import Record, record_dtype

CASCADE_INPUT = 2
SPURIOUS_INPUT = 7
NO_IRQ = -1


class PicChipState(Record):
    """State record; see the module docstring."""

    request: int  # IRR
    in_service: int  # ISR
    mask: int  # IMR
    lines: int  # present level of the eight inputs
    vector_base: int
    edge_level: int  # ELCR: 1 = level-triggered
    level_triggered: int  # ICW1 LTIM: all inputs level-triggered
    init_step: int  # 0 = ready, else the ICW number awaited
    needs_icw4: int
    single: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_mask: int
    special_fully_nested: int
    poll: int
    read_in_service: int
    lowest_priority: int


class PicState(Record):
    """State record; see the module docstring."""

    chips: Annotated[Sequence[PicChipState], PicChipState, 2]


PIC_DTYPE = record_dtype(PicState)


@compiled
def pic_reset(pic: PicState) -> None:
    """State a PC's firmware leaves: vectors 0x08 and 0x70, every input masked."""
    for i in range(2):
        chip = pic.chips[i]
        chip.request = 0
        chip.in_service = 0
        chip.mask = 0xFF
        chip.lines = 0
        chip.vector_base = 0x08 if i == 0 else 0x70
        chip.edge_level = 0
        chip.level_triggered = 0
        chip.init_step = 0
        chip.needs_icw4 = 0
        chip.single = 0
        chip.auto_eoi = 0
        chip.rotate_on_auto_eoi = 0
        chip.special_mask = 0
        chip.special_fully_nested = 0
        chip.poll = 0
        chip.read_in_service = 0
        chip.lowest_priority = 7


@compiled
def _highest(chip: PicChipState, bits: int) -> int:
    """Priority rank (0 = highest) of the best level in ``bits``; 8 when empty."""
    for rank in range(8):
        if (bits >> ((chip.lowest_priority + 1 + rank) & 7)) & 1:
            return rank
    return 8


@compiled
def _level_bits(chip: PicChipState) -> int:
    return 0xFF if chip.level_triggered != 0 else chip.edge_level


@compiled
def _chip_pending(chip: PicChipState, is_master: int) -> int:
    """The level this chip would present at INTA, or ``NO_IRQ`` when INT is low."""
    candidate = _highest(chip, chip.request & ~chip.mask)
    if candidate == 8:
        return NO_IRQ
    blocking = chip.in_service
    if chip.special_mask != 0:
        blocking &= ~chip.mask
    if is_master != 0 and chip.special_fully_nested != 0:
        blocking &= ~(1 << CASCADE_INPUT)
    if candidate >= _highest(chip, blocking):
        return NO_IRQ
    return (chip.lowest_priority + 1 + candidate) & 7


@compiled
def _set_line(chip: PicChipState, level_number: int, level: int) -> None:
    bit = 1 << level_number
    if level == 0:
        chip.lines &= ~bit
        chip.request &= ~bit
        return
    if chip.lines & bit == 0 or _level_bits(chip) & bit:
        chip.request |= bit
    chip.lines |= bit


@compiled
def _update_cascade(pic: PicState) -> None:
    """Drive the master's cascade input with the slave's INT output."""
    level = 1 if _chip_pending(pic.chips[1], 0) != NO_IRQ else 0
    _set_line(pic.chips[0], CASCADE_INPUT, level)


@compiled
def pic_set_irq(pic: PicState, irq: int, level: int) -> None:
    """Drive ISA interrupt line ``irq`` (0-15, 2 being the cascade and ignored) to 0 or 1."""
    if irq == CASCADE_INPUT:
        return
    _set_line(pic.chips[(irq >> 3) & 1], irq & 7, level)
    if irq >= 8:
        _update_cascade(pic)


@compiled
def pic_pending(pic: PicState) -> int:
    """1 when the master asserts INT to the processor."""
    return 1 if _chip_pending(pic.chips[0], 1) != NO_IRQ else 0


@compiled
def _acknowledge_chip(chip: PicChipState, level: int) -> None:
    bit = 1 << level
    if chip.auto_eoi != 0:
        if chip.rotate_on_auto_eoi != 0:
            chip.lowest_priority = level
    else:
        chip.in_service |= bit
    if _level_bits(chip) & bit == 0:
        chip.request &= ~bit


@compiled
def pic_acknowledge(pic: PicState) -> int:
    """The INTA cycle: the vector, 0-255. Without a request: the spurious level 7, ISR untouched."""
    master = pic.chips[0]
    level = _chip_pending(master, 1)
    if level == NO_IRQ:
        return master.vector_base | SPURIOUS_INPUT
    _acknowledge_chip(master, level)
    if level != CASCADE_INPUT or master.single != 0:
        return master.vector_base | level
    slave = pic.chips[1]
    level = _chip_pending(slave, 0)
    if level == NO_IRQ:
        level = SPURIOUS_INPUT
    else:
        _acknowledge_chip(slave, level)
    _update_cascade(pic)
    return slave.vector_base | level


@compiled
def _start_initialisation(chip: PicChipState, icw1: int) -> None:
    chip.needs_icw4 = icw1 & 1
    chip.single = (icw1 >> 1) & 1
    chip.level_triggered = (icw1 >> 3) & 1
    chip.init_step = 2
    chip.mask = 0
    chip.in_service = 0
    chip.lowest_priority = 7
    chip.special_mask = 0
    chip.poll = 0
    chip.read_in_service = 0
    chip.auto_eoi = 0
    chip.rotate_on_auto_eoi = 0
    chip.special_fully_nested = 0
    # Edge detection restarts: an input already high must fall and rise again.
    chip.request = chip.lines & _level_bits(chip)


@compiled
def _end_of_interrupt(chip: PicChipState, ocw2: int) -> None:
    command = (ocw2 >> 5) & 7
    level = ocw2 & 7
    if command == 0 or command == 4:
        chip.rotate_on_auto_eoi = 1 if command == 4 else 0
    elif command == 1 or command == 5:
        served = chip.in_service
        if chip.special_mask != 0:
            served &= ~chip.mask
        rank = _highest(chip, served)
        if rank < 8:
            level = (chip.lowest_priority + 1 + rank) & 7
            chip.in_service &= ~(1 << level)
            if command == 5:
                chip.lowest_priority = level
    elif command == 3 or command == 7:
        chip.in_service &= ~(1 << level)
        if command == 7:
            chip.lowest_priority = level
    elif command == 6:
        chip.lowest_priority = level


@compiled
def _write_command(chip: PicChipState, value: int) -> None:
    if value & 0x10:
        _start_initialisation(chip, value)
    elif value & 0x08:
        if value & 0x04:
            chip.poll = 1
        elif value & 0x02:
            chip.read_in_service = value & 1
        if value & 0x40:
            chip.special_mask = (value >> 5) & 1
    else:
        _end_of_interrupt(chip, value)


@compiled
def _write_data(chip: PicChipState, value: int) -> None:
    if chip.init_step == 2:
        chip.vector_base = value & 0xF8
        if chip.single == 0:
            chip.init_step = 3
        else:
            chip.init_step = 4 if chip.needs_icw4 != 0 else 0
    elif chip.init_step == 3:
        chip.init_step = 4 if chip.needs_icw4 != 0 else 0
    elif chip.init_step == 4:
        chip.auto_eoi = (value >> 1) & 1
        chip.special_fully_nested = (value >> 4) & 1
        chip.init_step = 0
    else:
        chip.mask = value


@compiled
def pic_write(pic: PicState, chip_number: int, a0: int, value: int) -> None:
    """Write chip 0 or 1 at address line A0 = 0 (ICW1, OCW2, OCW3) or 1 (ICW2-4, OCW1)."""
    chip = pic.chips[chip_number & 1]
    if a0 == 0:
        _write_command(chip, value & 0xFF)
    else:
        _write_data(chip, value & 0xFF)
    _update_cascade(pic)


@compiled
def pic_read(pic: PicState, chip_number: int, a0: int) -> int:
    """Read a chip: the poll byte after a poll command, else IMR (A0=1) or IRR/ISR (A0=0)."""
    chip = pic.chips[chip_number & 1]
    if chip.poll != 0:
        chip.poll = 0
        level = _chip_pending(chip, 1 - (chip_number & 1))
        if level == NO_IRQ:
            return 0
        _acknowledge_chip(chip, level)
        _update_cascade(pic)
        return 0x80 | level
    if a0 != 0:
        return chip.mask
    return chip.in_service if chip.read_in_service != 0 else chip.request


@compiled
def pic_read_edge_level(pic: PicState, chip_number: int) -> int:
    """ELCR of a chip: one bit an input, 1 = level-triggered."""
    return pic.chips[chip_number & 1].edge_level


@compiled
def pic_write_edge_level(pic: PicState, chip_number: int, value: int) -> None:
    """Set ELCR; the timer, keyboard, cascade, clock and coprocessor inputs stay edge-triggered."""
    chip = pic.chips[chip_number & 1]
    chip.edge_level = value & (0xF8 if chip_number == 0 else 0xDE)
    chip.request |= chip.lines & _level_bits(chip)
    _update_cascade(pic)
