# SPDX-License-Identifier: Apache-2.0
"""The balloon protocol, by what Linux 6.1's driver sends and expects, and by what a liar sends."""

from __future__ import annotations

import struct

import pytest

from memvirt.platform.balloon import (
    BATCH_ENTRIES,
    LARGE_PAGES,
    OFFERED,
    BalloonDevice,
    Capability,
    Command,
    Status,
    complete_balloon,
)

from .balloon_driver import BATCH_PPN, LINUX, PAGES, SetMemory, batch, connect

# The handshake ---------------------------------------------------------------------------------


def test_linux_is_offered_everything_but_the_doorbell() -> None:
    device = BalloonDevice(SetMemory())
    assert not device.connected
    reply = device.execute(Command.START, LINUX, 0)
    assert reply.status == 0x0300_0000
    assert reply.result == 0x2E
    assert device.connected
    assert device.execute(Command.GUEST_ID, 1, 0).status == 0
    assert device.guest_id == 1
    # Linux 6.1 sends this before each START, capability or not, and ignores the answer.
    doorbell = device.execute(Command.VMCI_DOORBELL_SET, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert doorbell.status is Status.COMMAND_INVALID


@pytest.mark.parametrize("wanted", [0, 1, 1 << 4, 1 << 5, 1 << 3, 1 << 63, 0xFFC0])
def test_a_driver_without_a_common_way_to_lock_is_not_connected(wanted: int) -> None:
    """0 is also how Linux's driver takes its leave when its module is removed."""
    device, memory = connect()
    assert device.execute(Command.LOCK, 100, 0).status is Status.SUCCESS
    assert device.execute(Command.START, wanted, 0).status is Status.SUCCESS_WITH_CAPABILITIES
    assert not device.connected
    assert device.size == 0
    assert not memory.given
    assert device.execute(Command.GET_TARGET, PAGES, 0).status is Status.RESET


def test_a_driver_of_version_2_gets_the_answer_it_knows() -> None:
    """Before capabilities START carried the version, 2, and 0 was success."""
    device, _ = connect(wanted=2)
    assert device.execute(Command.START, 2, 0).status == 0
    assert device.agreed is Capability.BASIC
    assert device.execute(Command.BATCHED_LOCK, BATCH_PPN, 1).status is Status.COMMAND_INVALID
    assert device.execute(Command.LOCK, 3, 0).status is Status.SUCCESS


def test_large_pages_need_batches() -> None:
    device = BalloonDevice(SetMemory(), offered=OFFERED & ~Capability.BATCHED)
    assert device.execute(Command.START, LINUX, 0).result == 0x22
    assert device.execute(Command.BATCHED_2M_LOCK, BATCH_PPN, 1).status is Status.COMMAND_INVALID


@pytest.mark.parametrize("command", [5, 11, 64, 1 << 32, (1 << 64) - 1])
def test_unknown_commands(command: int) -> None:
    device, memory = connect()
    assert device.execute(command, 1, 2).status is Status.COMMAND_INVALID
    assert not memory.given
    assert set(device.commands) <= set(Command)  # a guest cannot make the host remember more


@pytest.mark.parametrize("command", [c for c in Command if c is not Command.START])
def test_nothing_happens_before_start(command: Command) -> None:
    memory = SetMemory()
    device = BalloonDevice(memory)
    device.target = 10
    assert device.execute(command, 1, 1).status is Status.RESET
    assert not memory.given


# One page at a time ----------------------------------------------------------------------------


def test_lock_and_unlock_answer_with_the_target() -> None:
    device, memory = connect(target=50)
    assert device.execute(Command.GET_TARGET, 2000, 0) == (0, 50)
    assert device.guest_limit == 2000
    assert device.execute(Command.LOCK, 20, 0) == (0, 50)
    assert memory.given == {20}
    assert (device.size, device.locks) == (1, 1)
    device.target = 0
    assert device.execute(Command.UNLOCK, 20, 0) == (0, 0)
    assert not memory.given
    assert (device.size, device.unlocks) == (0, 1)


@pytest.mark.parametrize(
    ("command", "ppn", "status"),
    [
        (Command.LOCK, PAGES, Status.PPN_INVALID),
        (Command.LOCK, 1 << 52, Status.PPN_INVALID),
        (Command.LOCK, (1 << 64) - 1, Status.PPN_INVALID),
        (Command.UNLOCK, PAGES, Status.PPN_INVALID),
        (Command.UNLOCK, (1 << 63) + 5, Status.PPN_INVALID),
        (Command.LOCK, 5, Status.PPN_LOCKED),
        (Command.UNLOCK, 6, Status.PPN_UNLOCKED),
        (Command.LOCK, 9, Status.PPN_PINNED),
        (Command.LOCK, PAGES - 1, Status.SUCCESS),
    ],
)
def test_single_page_statuses(command: Command, ppn: int, status: Status) -> None:
    device, memory = connect(SetMemory(pinned=frozenset({9})))
    assert device.execute(Command.LOCK, 5, 0).status is Status.SUCCESS
    given = set(memory.given)
    assert device.execute(command, ppn, 0).status is status
    assert memory.given == (given | {ppn} if status is Status.SUCCESS else given)


def test_a_full_balloon_needs_no_more() -> None:
    device, _ = connect(target=2)
    answers = [device.execute(Command.LOCK, ppn, 0).status for ppn in (1, 2, 3)]
    assert answers == [Status.SUCCESS, Status.SUCCESS, Status.PPN_NOT_NEEDED]
    assert device.size == 2
    assert device.refused == 1
    device.target = 0
    assert device.execute(Command.LOCK, 4, 0).status is Status.PPN_NOT_NEEDED


# Batches ---------------------------------------------------------------------------------------


def test_a_whole_batch() -> None:
    device, memory = connect()
    ppns = list(range(1000, 1000 + BATCH_ENTRIES))
    assert batch(device, memory, Command.BATCHED_LOCK, ppns) == (0, [0] * BATCH_ENTRIES)
    assert memory.given == set(ppns)
    assert batch(device, memory, Command.BATCHED_UNLOCK, ppns) == (0, [0] * BATCH_ENTRIES)
    assert not memory.given
    assert (device.locks, device.unlocks) == (BATCH_ENTRIES, BATCH_ENTRIES)


def test_each_entry_has_its_own_status() -> None:
    device, memory = connect(SetMemory(pinned=frozenset({30})))
    assert device.execute(Command.LOCK, 20, 0).status is Status.SUCCESS
    ppns = [10, 20, PAGES, (1 << 52) - 1, 30, 10, BATCH_PPN, 11]
    assert batch(device, memory, Command.BATCHED_LOCK, ppns) == (0, [0, 3, 2, 2, 5, 3, 5, 0])
    assert memory.given == {10, 11, 20}
    assert device.refused == 4
    ppns = [10, 12, 10, PAGES, 20]
    assert batch(device, memory, Command.BATCHED_UNLOCK, ppns) == (0, [0, 4, 4, 2, 0])
    assert memory.given == {11}


def test_a_pinned_page_in_an_otherwise_good_batch() -> None:
    device, memory = connect(SetMemory(pinned=frozenset({30})))
    assert batch(device, memory, Command.BATCHED_LOCK, [29, 30, 31]) == (0, [0, 5, 0])
    assert memory.given == {29, 31}


def test_a_batch_stops_at_the_target() -> None:
    device, memory = connect(target=3)
    assert batch(device, memory, Command.BATCHED_LOCK, [1, 2, 3, 4, 5]) == (0, [0, 0, 0, 6, 6])
    assert memory.given == {1, 2, 3}


@pytest.mark.parametrize(
    ("ppn", "count", "status"),
    [
        (PAGES, 1, Status.PPN_INVALID),
        ((1 << 64) - 1, 1, Status.PPN_INVALID),
        (1 << 52, 1, Status.PPN_INVALID),
        (BATCH_PPN, BATCH_ENTRIES + 1, Status.COMMAND_INVALID),
        (BATCH_PPN, (1 << 64) - 1, Status.COMMAND_INVALID),
        (BATCH_PPN, 0, Status.SUCCESS),
        (50, 1, Status.PPN_LOCKED),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        Command.BATCHED_LOCK,
        Command.BATCHED_UNLOCK,
        Command.BATCHED_2M_LOCK,
        Command.BATCHED_2M_UNLOCK,
    ],
)
def test_bad_batches_change_nothing(command: Command, ppn: int, count: int, status: Status) -> None:
    device, memory = connect()
    assert device.execute(Command.LOCK, 50, 0).status is Status.SUCCESS
    assert device.execute(command, ppn, count).status is status
    assert memory.given == {50}
    assert memory.touched == 0


def test_reserved_bits_of_an_entry_are_ignored_and_cleared() -> None:
    device, memory = connect()
    memory.write_physical(BATCH_PPN << 12, struct.pack("<Q", 40 << 12 | 0xABC))
    assert device.execute(Command.BATCHED_LOCK, BATCH_PPN, 1).status is Status.SUCCESS
    assert memory.read_physical(BATCH_PPN << 12, 8) == struct.pack("<Q", 40 << 12)
    assert memory.given == {40}


def test_large_pages() -> None:
    device, memory = connect(SetMemory(pinned=frozenset({1030})))
    assert batch(device, memory, Command.BATCHED_2M_LOCK, [512, 1024, 513, 2048, 0, 512]) == (
        Status.SUCCESS,
        [0, 5, 2, 2, 5, 3],  # 0: the batch page lies in it
    )
    assert memory.given == set(range(512, 1024))
    assert device.execute(Command.LOCK, 600, 0).status is Status.PPN_LOCKED
    assert batch(device, memory, Command.BATCHED_2M_UNLOCK, [0, 512]) == (0, [4, 0])
    assert not memory.given


def test_a_large_page_may_be_unlocked_in_small_pieces_but_then_not_at_once() -> None:
    device, memory = connect()
    assert batch(device, memory, Command.BATCHED_2M_LOCK, [512]) == (0, [0])
    assert batch(device, memory, Command.BATCHED_UNLOCK, [700]) == (0, [0])
    assert batch(device, memory, Command.BATCHED_2M_UNLOCK, [512]) == (0, [4])
    assert device.size == LARGE_PAGES - 1


def test_the_last_large_page_may_pass_the_target() -> None:
    """Linux rounds the number of large pages up, and has as much slack when it deflates."""
    device, memory = connect(target=600)
    assert batch(device, memory, Command.BATCHED_2M_LOCK, [512, 1024, 1536]) == (0, [0, 0, 6])
    assert device.size == 1024


# Reset, touched pages, the host's side ---------------------------------------------------------


def test_reset_empties_the_balloon_and_wants_a_new_start() -> None:
    device, memory = connect()
    batch(device, memory, Command.BATCHED_LOCK, [1, 2, 3])
    device.reset()
    assert (device.resets, device.connected, device.size) == (1, False, 0)
    assert not memory.given
    for command in Command:
        if command is not Command.START:
            assert device.execute(command, 1, 1).status is Status.RESET
    assert device.execute(Command.START, LINUX, 0).result == 0x2E
    assert device.connected
    assert device.execute(Command.LOCK, 1, 0).status is Status.SUCCESS


def test_a_new_start_forgets_what_was_locked() -> None:
    """A guest that reboots, or loads its driver again, has none of the old pages."""
    device, memory = connect()
    batch(device, memory, Command.BATCHED_LOCK, [1, 2, 3])
    device.execute(Command.START, LINUX, 0)
    assert not memory.given
    assert device.execute(Command.UNLOCK, 1, 0).status is Status.PPN_UNLOCKED


def test_a_touched_page_leaves_the_balloon_and_can_still_be_unlocked() -> None:
    device, memory = connect()
    batch(device, memory, Command.BATCHED_LOCK, [1, 2, 3])
    memory.touch(2)
    assert (device.size, device.locked, device.touched) == (2, 3, 1)
    assert device.execute(Command.LOCK, 2, 0).status is Status.PPN_LOCKED
    assert batch(device, memory, Command.BATCHED_UNLOCK, [1, 2, 3]) == (0, [0, 0, 0])
    assert device.locked == 0


@pytest.mark.parametrize("target", [-1, PAGES + 1, 1 << 40])
def test_targets_beyond_memory_are_refused(target: int) -> None:
    device, _ = connect(target=5)
    with pytest.raises(ValueError, match=f"balloon target of {target} pages"):
        device.target = target
    assert device.target == 5


class Registers(dict[str, int]):
    def get(self, name: str) -> int:  # type: ignore[override]
        return self[name]

    def set(self, name: str, value: int) -> None:
        self[name] = value


@pytest.mark.parametrize("wide", [False, True])
def test_registers(wide: bool) -> None:
    """RAX and the result are whole 64-bit words, as Linux reads them; 32-bit code has no upper
    halves that could mean anything."""
    device = BalloonDevice(SetMemory())
    high = 0 if wide else 0xDEAD << 32
    registers = Registers(rax=~0, rbx=high | LINUX, rcx=high, rdx=0x5670, rsi=high)
    complete_balloon(device, registers, wide=wide)
    assert (registers["rax"], registers["rcx"]) == (0x0300_0000, 0x2E)
    device.target = 77
    registers = Registers(rax=~0, rbx=high | PAGES, rcx=high | 1, rdx=0x5670, rsi=high)
    complete_balloon(device, registers, wide=wide)
    assert (registers["rax"], registers["rbx"]) == (0, 77)
