# SPDX-License-Identifier: Apache-2.0
"""The VMware backdoor: how a guest asks its hypervisor questions, by ``in eax, dx`` at port 0x5658.

EAX holds the magic number "VMXh", ECX (its low 16 bits) the command; answers come in EAX to EDX.
What Linux 6.1 asks (``arch/x86/kernel/cpu/vmware.c``) is answered from what this machine is: the
version, the frequencies, the one virtual processor. Every command changes nothing, so ring 3 may
ask too, as it may on VMware. All other commands get ones in EAX and their registers back, which a
guest takes for "not available"; the steal-time clock and the vmmouse are among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from memvirt.platform.ports import BACKDOOR_MAGIC

TIME_STAMP_HZ = 1_000_000_000  # rdtsc counts virtual nanoseconds (cpu.virtual_time)
BUS_HZ = 1_000_000_000  # the local APIC's timer before its divider (platform.lapic)
VERSION = 6  # of the backdoor's interface: what VMware's products have long answered
PRODUCT_ESX = 2
NOT_AVAILABLE = 0xFFFF_FFFF
_COMMAND_MASK = 0xFFFF


class BackdoorCommand(IntEnum):
    """The commands that are answered."""

    GET_VERSION = 10
    GET_HZ = 45
    GET_VCPU_INFO = 68


@dataclass(frozen=True, slots=True)
class BackdoorReply:
    """Registers of the answer; None leaves the guest's own."""

    eax: int
    ebx: int | None = None
    ecx: int | None = None


class Registers(Protocol):
    """The registers of a stopped processor, by lower-case 64-bit name."""

    def get(self, name: str) -> int: ...
    def set(self, name: str, value: int) -> None: ...


def backdoor(command: int) -> BackdoorReply:
    """The answer to ``command``."""
    if command == BackdoorCommand.GET_VERSION:
        return BackdoorReply(VERSION, ebx=BACKDOOR_MAGIC, ecx=PRODUCT_ESX)
    if command == BackdoorCommand.GET_HZ:
        low, high = TIME_STAMP_HZ & 0xFFFF_FFFF, TIME_STAMP_HZ >> 32
        return BackdoorReply(low, ebx=high, ecx=BUS_HZ)
    if command == BackdoorCommand.GET_VCPU_INFO:
        return BackdoorReply(0)  # bit 31 clear: valid; bit 3 clear: no x2APIC without remapping
    return BackdoorReply(NOT_AVAILABLE)


def complete_backdoor(registers: Registers) -> None:
    """Put the answer to the IN the guest has just made into its registers, zero-extended."""
    reply = backdoor(registers.get("rcx") & _COMMAND_MASK)
    registers.set("rax", reply.eax)
    if reply.ebx is not None:
        registers.set("rbx", reply.ebx)
    if reply.ecx is not None:
        registers.set("rcx", reply.ecx)
