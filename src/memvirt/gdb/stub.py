# SPDX-License-Identifier: Apache-2.0
"""What gdb asks of one VM, and the answers: the commands of the remote serial protocol.

No bytes are sent or received here (``server``). A packet that is not known gets the empty answer,
as the protocol wants; a command that cannot be carried out gets an error, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from memvirt.address import GuestVirtualAddress
from memvirt.cpu.debugging import ProcessorDebugging, StopKind
from memvirt.vm.virtual_machine import VirtualMachine

from .memory import Unreachable, read_memory, write_memory
from .monitor import monitor
from .packets import MOST_BYTES, escaped, unescaped
from .points import PointKind, Points
from .registers import (
    REGISTERS,
    RegisterRefused,
    read_register,
    target_description,
    write_register,
)

_OK = b"OK"
_BAD, _FAULT, _REFUSED = b"E16", b"E0e", b"E01"  # EINVAL, EFAULT, EPERM
SIGNAL_INTERRUPT, SIGNAL_TRAP, SIGNAL_FAULT = 2, 5, 11
_THREAD = "thread:1;"
_MOST_READ = MOST_BYTES // 2 - 16


class After(Enum):
    """What is to happen once a packet has been answered."""

    NOTHING = "the VM stays stopped"
    RESUME = "the VM runs; the answer is the next stop"
    DETACH = "gdb leaves, the VM goes on"
    KILL = "the VM ends"


class Stub:
    """The debugger's side of one VM, stopped unless ``After.RESUME`` says otherwise."""

    def __init__(self, vm: VirtualMachine, debugging: ProcessorDebugging) -> None:
        self._vm = vm
        self._debugging = debugging
        self._points = Points(debugging)
        self._says_breakpoints = False
        self._then_continue = False
        self.acknowledges = True
        self.stop_reply = self._signal(SIGNAL_TRAP)
        """The answer to ``?``: why the VM is stopped."""
        self._commands: dict[str, Callable[[bytes], bytes]] = {
            "g": self._read_registers, "G": self._write_registers, "p": self._read_register,
            "P": self._write_register, "m": self._read_memory, "M": self._write_memory,
            "X": self._write_binary, "Z": self._insert, "z": self._remove,
            "H": lambda _: _OK, "T": lambda _: _OK, "?": lambda _: self.stop_reply,
            "q": self._query, "Q": self._set,
        }  # fmt: skip

    def new_connection(self) -> None:
        """gdb has come: nothing is agreed upon, nothing is set."""
        self.release()
        self.acknowledges = True
        self._says_breakpoints = False

    def release(self) -> None:
        """gdb has gone: take everything back."""
        self._points.clear()
        self._debugging.continue_()
        self._then_continue = False

    # Stops -------------------------------------------------------------------------------------

    @staticmethod
    def _signal(number: int, reason: str = "") -> bytes:
        return f"T{number:02x}{_THREAD}{reason}".encode()

    def stopped(self) -> bool:
        """The VM has stopped by itself (``vm.debug_stop``): True if gdb is to hear of it."""
        stop = self._vm.debug_stop
        assert stop is not None
        if self._then_continue and stop.kind is StopKind.STEP:
            self._then_continue = False
            self._debugging.continue_()
            return False
        self._then_continue = False
        reason = self._points.reason(stop, breakpoints=self._says_breakpoints)
        self.stop_reply = self._signal(SIGNAL_TRAP, reason)
        return True

    def interrupted(self, signal: int = SIGNAL_INTERRUPT) -> None:
        """The VM has been stopped from outside, or has died by ``signal``."""
        self._debugging.continue_()
        self._then_continue = False
        self.stop_reply = self._signal(signal)

    # Packets -----------------------------------------------------------------------------------

    def handle(self, packet: bytes) -> tuple[bytes | None, After]:
        """The answer to ``packet`` (None: none, or none yet), and what follows."""
        kind = packet[:1].decode("latin-1")
        if kind in ("c", "C", "s", "S"):
            return self._resume(kind, packet[1:])
        if packet.startswith(b"v"):
            return self._long(packet)
        if kind == "D":
            return _OK, After.DETACH
        if kind == "k":
            return None, After.KILL
        command = self._commands.get(kind)
        if command is None:
            return b"", After.NOTHING
        try:
            return command(packet[1:]), After.NOTHING
        except Unreachable:
            return _FAULT, After.NOTHING
        except RegisterRefused:
            return _REFUSED, After.NOTHING
        except (ValueError, IndexError):
            return _BAD, After.NOTHING

    def _long(self, packet: bytes) -> tuple[bytes | None, After]:
        """Packets whose names begin with ``v``."""
        if packet == b"vCont?":
            return b"vCont;c;C;s;S", After.NOTHING
        if packet.startswith(b"vCont;"):
            # The first action that is for our one thread counts.
            action = packet.split(b";")[1].split(b":")[0].decode("latin-1")
            if action[:1] not in ("c", "C", "s", "S"):
                return _BAD, After.NOTHING
            return self._resume(action[:1], b"")
        if packet.startswith(b"vKill"):
            return _OK, After.KILL
        return b"", After.NOTHING

    def _resume(self, kind: str, rest: bytes) -> tuple[bytes | None, After]:
        """Go on, from another address if one is given. Signals mean nothing to a guest."""
        try:
            address = rest.partition(b";")[2] if kind in "CS" else rest
            if address:
                self._vm.processor.set("rip", int(address, 16) & (1 << 64) - 1)
        except ValueError:
            return _BAD, After.NOTHING
        rip = GuestVirtualAddress(self._vm.processor.get("rip"))
        # From a breakpoint on, the instruction that it stands before is executed first.
        self._then_continue = kind in "cC" and self._points.breaks_at(rip)
        if kind in "sS" or self._then_continue:
            self._debugging.step()
        else:
            self._debugging.continue_()
        return None, After.RESUME

    # Registers ---------------------------------------------------------------------------------

    def _read_registers(self, _: bytes) -> bytes:
        content = b"".join(read_register(self._vm, n) for n in range(len(REGISTERS)))
        return content.hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        content = bytes.fromhex(rest.decode("ascii"))
        if len(content) != sum(register.bytes for register in REGISTERS):
            return _BAD
        at = 0
        for number, register in enumerate(REGISTERS):
            write_register(self._vm, number, content[at : at + register.bytes])
            at += register.bytes
        return _OK

    def _read_register(self, rest: bytes) -> bytes:
        return read_register(self._vm, int(rest, 16)).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        write_register(self._vm, int(number, 16), bytes.fromhex(value.decode("ascii")))
        return _OK

    # Memory ------------------------------------------------------------------------------------

    @staticmethod
    def _range(text: bytes) -> tuple[GuestVirtualAddress, int]:
        gva, _, count = text.partition(b",")
        return GuestVirtualAddress(int(gva, 16)), int(count, 16)

    def _read_memory(self, rest: bytes) -> bytes:
        gva, count = self._range(rest)
        return read_memory(self._vm, gva, min(count, _MOST_READ)).hex().encode()

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, content = rest.partition(b":")
        return self._write(where, bytes.fromhex(content.decode("ascii")))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, content = rest.partition(b":")
        return self._write(where, unescaped(content))

    def _write(self, where: bytes, content: bytes) -> bytes:
        gva, count = self._range(where)
        if len(content) != count:
            return _BAD
        write_memory(self._vm, gva, content)
        return _OK

    # Breakpoints and watchpoints ---------------------------------------------------------------

    def _point(
        self, rest: bytes, change: Callable[[PointKind, GuestVirtualAddress, int], None]
    ) -> bytes:
        kind_text, _, where = rest.partition(b";")[0].partition(b",")
        number = int(kind_text, 16)
        if number not in list(PointKind) or not self._points.supports(PointKind(number)):
            return b""  # not supported
        gva, size = self._range(where)
        change(PointKind(number), gva, size)
        return _OK

    def _insert(self, rest: bytes) -> bytes:
        return self._point(rest, self._points.insert)

    def _remove(self, rest: bytes) -> bytes:
        return self._point(rest, self._points.remove)

    # Queries -----------------------------------------------------------------------------------

    def _query(self, rest: bytes) -> bytes:
        name, _, argument = rest.partition(b":")
        fixed = {
            b"C": b"QC1", b"fThreadInfo": b"m1", b"sThreadInfo": b"l", b"Attached": b"1",
            b"Symbol": _OK,
        }  # fmt: skip
        if name in fixed:
            return fixed[name]
        if name == b"Supported":
            self._says_breakpoints = b"swbreak+" in argument.split(b";")
            return (
                f"PacketSize={MOST_BYTES:x};qXfer:features:read+;QStartNoAckMode+;swbreak+;"
                "hwbreak+;vContSupported+"
            ).encode()
        if name == b"Xfer":
            return self._transfer(argument)
        if rest.startswith(b"Rcmd,"):
            text = bytes.fromhex(rest[5:].decode("ascii")).decode("utf-8", "replace")
            return monitor(self._vm, text).encode().hex().encode()[: MOST_BYTES & ~1]
        return b""

    @staticmethod
    def _transfer(argument: bytes) -> bytes:
        """``qXfer:features:read:target.xml:offset,length``."""
        parts = argument.split(b":")
        if parts[:2] != [b"features", b"read"] or len(parts) != 4:
            return b""
        if parts[2] != b"target.xml":
            return b"E00"
        offset, _, length = parts[3].partition(b",")
        text, begin = target_description().encode(), int(offset, 16)
        piece = text[begin : begin + min(int(length, 16), _MOST_READ)]
        more = begin + len(piece) < len(text)
        return (b"m" if more else b"l") + escaped(piece)

    def _set(self, rest: bytes) -> bytes:
        if rest == b"StartNoAckMode":
            self.acknowledges = False
            return _OK
        return b""
