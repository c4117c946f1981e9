# SPDX-License-Identifier: Apache-2.0
"""8254 interval timer and port 0x61 (Intel 82C54 datasheet, order 231244; 82371AB for 0x61).

Channel state is kept as "loaded N at tick T": the present count and output are computed from the
time asked about, so an idle timer costs nothing. A tick is one period of the 1,193,182 Hz clock,
counted from virtual time 0. The clock cycle a real chip spends on loading a count is not modelled.
"""

from collections.abc import Sequence
from typing import Annotated

from memvirt.compiled import compiled
from memvirt.platform.clock import NANOSECONDS_PER_SECOND, NEVER
from memvirt.state_record import Record, record_dtype

PIT_HERTZ = 1_193_182
REFRESH_PERIOD_NS = 15_085
"""Port 0x61 bit 4 toggles once in this many nanoseconds (DRAM refresh, channel 1 on an AT)."""

ACCESS_LOW = 1
ACCESS_HIGH = 2
ACCESS_BOTH = 3


class PitChannelState(Record):
    """One counter."""

    mode: int  # 0-5
    access: int  # 1 = low byte, 2 = high byte, 3 = low then high
    bcd: int
    count: int  # N, 1..65536, or 1..10000 in BCD
    next_count: int  # N to start at the end of this period; 0 = none
    start_tick: int  # when N was loaded
    loaded: int  # a count has been written since the control word
    triggered: int  # modes 1 and 5: the gate has risen since the control word
    gate: int
    frozen: int  # ticks already counted when the gate fell
    write_low: int  # low byte waiting for its high byte
    write_second: int  # the next byte written is the high one
    read_second: int  # the next byte read is the high one
    latched: int  # bytes of latched_count still to be read
    latched_count: int
    status_latched: int
    latched_status: int


class PitState(Record):
    """State record; see the module docstring."""

    edge_tick: int  # channel 0's rising edges up to this tick have been reported
    speaker: int  # port 0x61 bits 1-3 as last written
    channels: Annotated[Sequence[PitChannelState], PitChannelState, 3]


PIT_DTYPE = record_dtype(PitState)


@compiled
def pit_ticks(now: int) -> int:
    """Whole timer ticks elapsed at ``now`` nanoseconds."""
    seconds = now // NANOSECONDS_PER_SECOND
    rest = now % NANOSECONDS_PER_SECOND
    return seconds * PIT_HERTZ + rest * PIT_HERTZ // NANOSECONDS_PER_SECOND


@compiled
def pit_nanoseconds(tick: int) -> int:
    """The first nanosecond at which ``pit_ticks`` reaches ``tick``."""
    seconds = tick // PIT_HERTZ
    rest = tick % PIT_HERTZ
    return (
        seconds * NANOSECONDS_PER_SECOND
        + (rest * NANOSECONDS_PER_SECOND + PIT_HERTZ - 1) // PIT_HERTZ
    )


@compiled
def pit_reset(pit: PitState) -> None:
    """As a PC's firmware leaves it: channel 0 in mode 3 at 18.2 Hz, channel 2 gated off."""
    pit.edge_tick = 0
    pit.speaker = 0
    for i in range(3):
        channel = pit.channels[i]
        channel.mode = 3
        channel.access = ACCESS_BOTH
        channel.bcd = 0
        channel.count = 65536
        channel.next_count = 0
        channel.start_tick = 0
        channel.loaded = 1
        channel.triggered = 0
        channel.gate = 0 if i == 2 else 1
        channel.frozen = 0
        channel.write_low = 0
        channel.write_second = 0
        channel.read_second = 0
        channel.latched = 0
        channel.latched_count = 0
        channel.status_latched = 0
        channel.latched_status = 0


@compiled
def _elapsed(channel: PitChannelState, tick: int) -> int:
    """Ticks counted since the load, after switching to a count due at a period's end."""
    if channel.gate == 0 and channel.mode != 1 and channel.mode != 5:
        return channel.frozen
    if channel.next_count != 0 and tick - channel.start_tick >= channel.count:
        channel.start_tick += channel.count
        channel.count = channel.next_count
        channel.next_count = 0
    return tick - channel.start_tick


@compiled
def _is_waiting(channel: PitChannelState) -> int:
    """1 while nothing counts: no count written, or modes 1 and 5 before their trigger."""
    if channel.loaded == 0:
        return 1
    return 1 if (channel.mode == 1 or channel.mode == 5) and channel.triggered == 0 else 0


@compiled
def pit_output(channel: PitChannelState, tick: int) -> int:
    """Level of a channel's OUT pin (datasheet, "Mode Definitions")."""
    if _is_waiting(channel) != 0:
        return 0 if channel.mode == 0 else 1
    elapsed = _elapsed(channel, tick)
    count = channel.count
    if channel.mode <= 1:
        return 1 if elapsed >= count else 0
    if channel.mode >= 4:
        return 0 if elapsed == count else 1
    if channel.gate == 0:
        return 1
    phase = elapsed % count
    if channel.mode == 2:
        return 0 if phase == count - 1 else 1
    return 1 if phase < (count + 1) // 2 else 0


@compiled
def _present_count(channel: PitChannelState, tick: int) -> int:
    """Counting element as the two bytes a read sees (four decimal digits in BCD mode)."""
    modulus = 10000 if channel.bcd != 0 else 65536
    if _is_waiting(channel) != 0:
        value = channel.count
    else:
        elapsed = _elapsed(channel, tick)
        count = channel.count
        if channel.mode == 2:
            value = count - elapsed % count
        elif channel.mode == 3:
            value = count - (2 * elapsed) % count
            value &= ~1
        else:
            value = count - elapsed
    value %= modulus
    if channel.bcd == 0:
        return value
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 << 12


@compiled
def _load_count(channel: PitChannelState, raw: int, tick: int) -> None:
    if channel.bcd != 0:
        raw = (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15)
        count = raw if raw != 0 else 10000
    else:
        count = raw if raw != 0 else 65536
    periodic = channel.mode == 2 or channel.mode == 3
    if periodic and count < 2:
        count = 2  # 1 is illegal in modes 2 and 3 (datasheet, "Minimum and Maximum Initial Counts")
    if periodic and channel.loaded != 0 and channel.gate != 0:
        _elapsed(channel, tick)
        channel.next_count = count
        return
    channel.count = count
    channel.next_count = 0
    channel.loaded = 1
    if channel.mode != 1 and channel.mode != 5:
        channel.start_tick = tick
        channel.frozen = 0


@compiled
def _latch_count(channel: PitChannelState, tick: int) -> None:
    if channel.latched != 0:
        return
    channel.latched_count = _present_count(channel, tick)
    channel.latched = channel.access


@compiled
def _latch_status(channel: PitChannelState, tick: int) -> None:
    if channel.status_latched != 0:
        return
    null_count = 1 if channel.loaded == 0 or channel.next_count != 0 else 0
    channel.latched_status = (
        pit_output(channel, tick) << 7
        | null_count << 6
        | channel.access << 4
        | channel.mode << 1
        | channel.bcd
    )
    channel.status_latched = 1


@compiled
def _write_control(pit: PitState, value: int, tick: int) -> None:
    select = value >> 6
    if select == 3:
        for i in range(3):
            if value >> (i + 1) & 1:
                if value & 0x20 == 0:
                    _latch_count(pit.channels[i], tick)
                if value & 0x10 == 0:
                    _latch_status(pit.channels[i], tick)
        return
    channel = pit.channels[select]
    access = value >> 4 & 3
    if access == 0:
        _latch_count(channel, tick)
        return
    mode = value >> 1 & 7
    channel.mode = mode - 4 if mode > 5 else mode
    channel.access = access
    channel.bcd = value & 1
    channel.loaded = 0
    channel.triggered = 0
    channel.next_count = 0
    channel.write_second = 0
    channel.read_second = 0
    channel.latched = 0
    channel.status_latched = 0


@compiled
def pit_write(pit: PitState, register: int, value: int, now: int) -> None:
    """Write port 0x40 + ``register``. Report channel 0's edges (``pit_advance``) first."""
    value &= 0xFF
    tick = pit_ticks(now)
    if register == 3:
        _write_control(pit, value, tick)
        return
    channel = pit.channels[register]
    if channel.access == ACCESS_LOW:
        _load_count(channel, value, tick)
    elif channel.access == ACCESS_HIGH:
        _load_count(channel, value << 8, tick)
    elif channel.write_second == 0:
        channel.write_low = value
        channel.write_second = 1
        if channel.mode == 0:
            channel.loaded = 0  # the first byte stops the count (datasheet, mode 0)
    else:
        channel.write_second = 0
        _load_count(channel, value << 8 | channel.write_low, tick)


@compiled
def pit_read(pit: PitState, register: int, now: int) -> int:
    """Read port 0x40 + ``register``: latched status, then latched count, then the live count."""
    if register == 3:
        return 0xFF  # the control word register cannot be read
    channel = pit.channels[register]
    if channel.status_latched != 0:
        channel.status_latched = 0
        return channel.latched_status
    if channel.latched != 0:
        if channel.latched & ACCESS_LOW:
            channel.latched &= ~ACCESS_LOW
            return channel.latched_count & 0xFF
        channel.latched = 0
        return channel.latched_count >> 8
    count = _present_count(channel, pit_ticks(now))
    if channel.access == ACCESS_LOW:
        return count & 0xFF
    if channel.access == ACCESS_HIGH:
        return count >> 8
    channel.read_second ^= 1
    return count & 0xFF if channel.read_second != 0 else count >> 8


@compiled
def pit_set_gate(channel: PitChannelState, gate: int, now: int) -> None:
    """Drive a channel's GATE pin (datasheet table "Gate Pin Operations Summary")."""
    if gate == channel.gate:
        return
    tick = pit_ticks(now)
    mode = channel.mode
    if gate == 0:
        channel.frozen = _elapsed(channel, tick)
    elif mode == 0 or mode == 4:
        channel.start_tick = tick - channel.frozen
    else:
        channel.start_tick = tick
        channel.triggered = 1
    channel.gate = gate


@compiled
def pit_read_61(pit: PitState, now: int) -> int:
    """Port 0x61: gate 2 and speaker bits, refresh toggle (bit 4), channel 2 output (bit 5)."""
    channel = pit.channels[2]
    refresh = now // REFRESH_PERIOD_NS & 1
    return channel.gate | pit.speaker | refresh << 4 | pit_output(channel, pit_ticks(now)) << 5


@compiled
def pit_write_61(pit: PitState, value: int, now: int) -> None:
    """Port 0x61: bit 0 is channel 2's gate; bits 1-3 are only remembered."""
    pit.speaker = value & 0x0E
    pit_set_gate(pit.channels[2], value & 1, now)


@compiled
def _edges_until(channel: PitChannelState, tick: int) -> int:
    """Rising edges of a freely gated channel in (load, tick]; a pending count is not switched."""
    if _is_waiting(channel) != 0 or channel.mode == 5:
        return 0
    elapsed = tick - channel.start_tick
    if channel.mode == 2 or channel.mode == 3:
        return max(elapsed // channel.count, 0)
    rise = channel.count + (1 if channel.mode == 4 else 0)
    return 1 if elapsed >= rise else 0


@compiled
def pit_advance(pit: PitState, now: int) -> int:
    """Rising edges of channel 0 (IRQ 0) since the previous call; marks them reported."""
    channel = pit.channels[0]
    tick = pit_ticks(now)
    if tick <= pit.edge_tick:
        return 0
    edges = 0
    if channel.next_count != 0 and channel.loaded != 0:
        boundary = channel.start_tick + channel.count
        if boundary <= tick:
            edges += 1 if pit.edge_tick < boundary else 0
            pit.edge_tick = max(pit.edge_tick, boundary)
            _elapsed(channel, tick)
    edges += _edges_until(channel, tick) - _edges_until(channel, pit.edge_tick)
    pit.edge_tick = tick
    return edges


@compiled
def pit_next_deadline(pit: PitState) -> int:
    """Virtual nanoseconds of channel 0's next unreported rising edge, or ``NEVER``."""
    channel = pit.channels[0]
    if _is_waiting(channel) != 0 or channel.mode == 5:
        return NEVER
    done = _edges_until(channel, pit.edge_tick)
    if channel.mode == 2 or channel.mode == 3:
        return pit_nanoseconds(channel.start_tick + (done + 1) * channel.count)
    if done != 0:
        return NEVER
    return pit_nanoseconds(channel.start_tick + channel.count + (1 if channel.mode == 4 else 0))
