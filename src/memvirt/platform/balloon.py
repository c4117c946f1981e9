# SPDX-License-Identifier: Apache-2.0
"""The balloon device: VMware's balloon protocol on I/O port 0x5670, the host's end.

The guest's driver executes ``in eax, dx`` with EAX = magic, ECX = command, (R)BX and (R)SI =
arguments; EAX returns the status, RBX the target (for START, RCX the capabilities). Commands,
capabilities and statuses are those that Linux 6.1's ``drivers/misc/vmw_balloon.c`` uses;
docs/balloon.md describes the protocol and what holds if the driver lies.

The device keeps which pages the driver has locked; the VMM keeps which of them are still without
a frame (``BalloonMemory``). They differ by the pages a guest touched without unlocking them.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple, Protocol

import numpy as np

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    PhysicalPageNumber,
    PpnArray,
    guest_physical_address,
)
from memvirt.platform.backdoor import Registers

Verdicts = np.ndarray[Any, np.dtype[np.bool_]]

LARGE_PAGES = 512  # pages of 4 KiB in one of 2 MiB
BATCH_ENTRIES = PAGE_BYTES // 8
_STATUS_MASK = PAGE_BYTES - 1
_WORD32, _WORD64 = (1 << 32) - 1, (1 << 64) - 1


class Command(IntEnum):
    """What the driver asks. 5 and everything above 10 do not exist."""

    START = 0
    GET_TARGET = 1
    LOCK = 2
    UNLOCK = 3
    GUEST_ID = 4
    BATCHED_LOCK = 6
    BATCHED_UNLOCK = 7
    BATCHED_2M_LOCK = 8
    BATCHED_2M_UNLOCK = 9
    VMCI_DOORBELL_SET = 10


class Capability(IntFlag):
    """What both sides can do; the driver offers, the device answers with the common part."""

    BASIC = 1 << 1  # LOCK, UNLOCK
    BATCHED = 1 << 2  # BATCHED_LOCK, BATCHED_UNLOCK
    BATCHED_2M = 1 << 3  # BATCHED_2M_LOCK, BATCHED_2M_UNLOCK
    SIGNALLED_WAKEUP = 1 << 4  # VMCI_DOORBELL_SET: never offered, there is no VMCI device
    TARGET_64BIT = 1 << 5  # the target is all of RBX


OFFERED = Capability.BASIC | Capability.BATCHED | Capability.BATCHED_2M | Capability.TARGET_64BIT


class Status(IntEnum):
    """What the device answers, for a command or for one entry of a batch."""

    SUCCESS = 0
    COMMAND_INVALID = 1  # unknown, or its capability was not agreed on
    PPN_INVALID = 2  # beyond memory, or not aligned
    PPN_LOCKED = 3  # locked already
    PPN_UNLOCKED = 4  # not locked
    PPN_PINNED = 5  # the host cannot do without it
    PPN_NOT_NEEDED = 6  # the balloon is large enough
    RESET = 7  # start again: nothing is locked any more
    BUSY = 8
    SUCCESS_WITH_CAPABILITIES = 0x0300_0000


class Reply(NamedTuple):
    """``result`` is the target, or the capabilities after START."""

    status: Status
    result: int


class BalloonMemory(Protocol):
    """The guest's memory as the device needs it; the VMM implements it."""

    @property
    def pages(self) -> int: ...
    @property
    def ballooned(self) -> int:
        """Pages without a frame now because they were given up."""

    @property
    def touched(self) -> int:
        """Pages touched after they were given up and before they were taken back; ever."""

    def give_up(self, ppns: PpnArray) -> Verdicts:
        """Free the frame, and forget the content, of each page; False where it cannot be."""

    def take_back(self, ppns: PpnArray) -> Verdicts:
        """Let each page be zero-filled on touch; False where it was not given up."""

    def read_physical(self, gpa: GuestPhysicalAddress, count: int) -> bytes: ...
    def write_physical(self, gpa: GuestPhysicalAddress, data: bytes) -> None: ...


_NEEDS = {
    Command.LOCK: Capability.BASIC,
    Command.UNLOCK: Capability.BASIC,
    Command.BATCHED_LOCK: Capability.BATCHED,
    Command.BATCHED_UNLOCK: Capability.BATCHED,
    Command.BATCHED_2M_LOCK: Capability.BATCHED_2M,
    Command.BATCHED_2M_UNLOCK: Capability.BATCHED_2M,
    Command.VMCI_DOORBELL_SET: Capability.SIGNALLED_WAKEUP,
}
_LARGE = (Command.BATCHED_2M_LOCK, Command.BATCHED_2M_UNLOCK)
_LOCKS = (Command.LOCK, Command.BATCHED_LOCK, Command.BATCHED_2M_LOCK)


class BalloonDevice:
    """The balloon of one VM. Use it only while the VM's processor is stopped.

    ``offered`` are the capabilities the device has; it takes effect at the driver's next START.
    """

    def __init__(self, memory: BalloonMemory, *, offered: Capability = OFFERED) -> None:
        self.offered = offered
        self.agreed = Capability(0)
        self.connected = False
        self.guest_id: int | None = None
        self.guest_limit: int | None = None  # pages the driver says it manages; not trusted
        self.resets = 0  # resets the host asked for
        self.starts = 0
        self.commands: Counter[Command] = Counter()
        self.answers: Counter[Status] = Counter()  # by status: of commands, and of batch entries
        self.locks = 0  # pages locked, ever
        self.unlocks = 0
        self._memory = memory
        self._locked: Verdicts = np.zeros(memory.pages, bool)
        self._target = 0

    # The host's side ---------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """Pages the balloon should hold. Raises ValueError if set beyond the VM's memory."""
        return self._target

    @target.setter
    def target(self, pages: int) -> None:
        if not 0 <= pages <= self._memory.pages:
            raise ValueError(
                f"balloon target of {pages} pages: the VM has {self._memory.pages} pages"
            )
        self._target = int(pages)

    @property
    def size(self) -> int:
        """Pages the balloon holds: given up, and not touched since."""
        return self._memory.ballooned

    @property
    def locked(self) -> int:
        """Pages the driver has locked, those it touched all the same included."""
        return int(np.count_nonzero(self._locked))

    @property
    def touched(self) -> int:
        """Pages the guest touched while they were locked; ever."""
        return self._memory.touched

    @property
    def refused(self) -> int:
        """Pages the driver offered that were not taken, ever."""
        return sum(
            self.answers[status]
            for status in (Status.PPN_LOCKED, Status.PPN_PINNED, Status.PPN_NOT_NEEDED)
        )

    def reset(self) -> None:
        """Ask the guest to start again: until its next START every command is answered RESET.

        The balloon is empty at once: its pages are as pages never touched.
        """
        self.resets += 1
        self.connected = False
        self._release_all()

    # The guest's side --------------------------------------------------------------------------

    def execute(self, command: int, arg1: int, arg2: int) -> Reply:
        """Do what the driver asks. Arguments are unsigned words and trusted in nothing.

        Raises MachineMemoryExhausted, with nothing changed, if the batch page of the driver has
        no frame and none is free.
        """
        status, result = self._execute(command, arg1, arg2)
        if status is not Status.SUCCESS:
            self.answers[status] += 1
        return Reply(status, result)

    def _execute(self, command: int, arg1: int, arg2: int) -> Reply:
        try:
            known = Command(command)
        except ValueError:
            return Reply(Status.COMMAND_INVALID, self._target)
        self.commands[known] += 1
        if known is Command.START:
            return self._start(arg1)
        if not self.connected:
            return Reply(Status.RESET, self._target)
        needs = _NEEDS.get(known, Capability(0))
        if needs & ~self.agreed:
            return Reply(Status.COMMAND_INVALID, self._target)
        status = Status.SUCCESS
        if known is Command.GUEST_ID:
            self.guest_id = arg1
        elif known is Command.GET_TARGET:
            self.guest_limit = arg1
        elif known in (Command.LOCK, Command.UNLOCK):
            status = self._change(known in _LOCKS, PhysicalPageNumber(arg1), 1)
        else:
            status = self._batch(known, PhysicalPageNumber(arg1), arg2)
        return Reply(status, self._target)

    def _start(self, wanted: int) -> Reply:
        """A driver begins, begins again, or (without capabilities) takes its leave.

        Whatever was locked is not any more: the driver has freed it, or is a new one.
        """
        self._release_all()
        self.starts += 1
        self.guest_id = self.guest_limit = None
        if wanted == Capability.BASIC and self.offered & Capability.BASIC:
            # A driver from before capabilities: 2 is its protocol version, 0 the answer it knows.
            self.agreed, self.connected = Capability.BASIC, True
            return Reply(Status.SUCCESS, int(Capability.BASIC))
        self.agreed = Capability(wanted & int(self.offered))
        if not self.agreed & Capability.BATCHED:
            self.agreed &= ~Capability.BATCHED_2M
        self.connected = bool(self.agreed & (Capability.BASIC | Capability.BATCHED))
        return Reply(Status.SUCCESS_WITH_CAPABILITIES, int(self.agreed))

    def _release_all(self) -> None:
        self._memory.take_back(PpnArray(np.flatnonzero(self._locked).astype(np.int64)))
        self._locked[:] = False

    def _change(self, lock: bool, ppn: PhysicalPageNumber, count: int) -> Status:
        """Lock or unlock ``count`` pages from ``ppn``: all of them, or none."""
        if ppn % count or ppn + count > self._memory.pages:
            return Status.PPN_INVALID
        run = slice(ppn, ppn + count)
        ppns = PpnArray(np.arange(ppn, ppn + count, dtype=np.int64))
        if not lock:
            if not self._locked[run].all():
                return Status.PPN_UNLOCKED
            self._memory.take_back(ppns)  # a touched page is back already
            self._locked[run] = False
            self.unlocks += count
            return Status.SUCCESS
        if self._locked[run].any():
            return Status.PPN_LOCKED
        if self.size >= self._target:  # the last large page may pass the target
            return Status.PPN_NOT_NEEDED
        accepted = self._memory.give_up(ppns)
        if not accepted.all():
            self._memory.take_back(ppns[accepted])
            return Status.PPN_PINNED
        self._locked[run] = True
        self.locks += count
        return Status.SUCCESS

    # Batches -----------------------------------------------------------------------------------

    def _batch(self, command: Command, batch_ppn: PhysicalPageNumber, count: int) -> Status:
        """Work through the first ``count`` entries of page ``batch_ppn``.

        An entry is a PPN in bits 63:12; its status is written to bits 4:0, the rest become zero.
        """
        if batch_ppn >= self._memory.pages:
            return Status.PPN_INVALID
        if self._locked[batch_ppn]:
            return Status.PPN_LOCKED
        if count > BATCH_ENTRIES:
            return Status.COMMAND_INVALID
        if count == 0:
            return Status.SUCCESS
        gpa = guest_physical_address(batch_ppn)
        raw = self._memory.read_physical(gpa, 8 * count)
        # The page gets its own frame now, while nothing has changed: the answers must not fail.
        self._memory.write_physical(gpa, raw[:8])
        ppns = np.frombuffer(raw, "<u8") >> np.uint64(PAGE_SHIFT)
        pages = LARGE_PAGES if command in _LARGE else 1
        statuses = self._work(command in _LOCKS, batch_ppn, ppns.tolist(), pages)
        self.answers.update(status for status in statuses if status is not Status.SUCCESS)
        answer = (ppns << np.uint64(PAGE_SHIFT)) | np.array(statuses, np.uint64)
        self._memory.write_physical(gpa, answer.astype("<u8").tobytes())
        return Status.SUCCESS

    def _work(
        self, lock: bool, batch_ppn: PhysicalPageNumber, ppns: list[PhysicalPageNumber], pages: int
    ) -> list[Status]:
        """The status of each entry; the common case, all of them good single pages, at once."""
        if pages == 1 and self._all_good(lock, batch_ppn, ppns):
            array = PpnArray(np.array(ppns, np.int64))
            if not lock:
                self._memory.take_back(array)
                self._locked[array] = False
                self.unlocks += array.size
                return [Status.SUCCESS] * len(ppns)
            accepted = self._memory.give_up(array)
            self._locked[array[accepted]] = True
            self.locks += int(np.count_nonzero(accepted))
            return [Status.SUCCESS if good else Status.PPN_PINNED for good in accepted.tolist()]
        statuses = []
        for ppn in ppns:
            own = lock and ppn <= batch_ppn < ppn + pages  # the page the answers go to
            statuses.append(Status.PPN_PINNED if own else self._change(lock, ppn, pages))
        return statuses

    def _all_good(
        self, lock: bool, batch_ppn: PhysicalPageNumber, ppns: list[PhysicalPageNumber]
    ) -> bool:
        """True if every entry of a batch of single pages passes every check."""
        distinct = set(ppns)
        if len(distinct) != len(ppns) or max(ppns) >= self._memory.pages:
            return False
        locked = self._locked[np.array(ppns, np.int64)]
        if not lock:
            return bool(locked.all())
        room = self._target - self.size
        return batch_ppn not in distinct and not locked.any() and len(ppns) <= room


def complete_balloon(device: BalloonDevice, registers: Registers, *, wide: bool) -> None:
    """Carry out the IN the guest has just made. ``wide``: in 64-bit code, with 64-bit arguments."""
    mask = _WORD64 if wide else _WORD32
    command = registers.get("rcx") & mask
    reply = device.execute(command, registers.get("rbx") & mask, registers.get("rsi") & mask)
    registers.set("rax", int(reply.status))
    registers.set("rcx" if command == Command.START else "rbx", reply.result)
