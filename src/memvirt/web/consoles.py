# SPDX-License-Identifier: Apache-2.0
"""The consoles and text screens of a host's VMs: what they show, and what is typed.

Called in the host's thread, between two rounds.
"""

from __future__ import annotations

import struct

import numpy as np

from memvirt.address import PAGE_SHIFT
from memvirt.host.host import Host
from memvirt.platform.text_screen import TextScreen
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.pmap import PageState
from memvirt.vmm.stores.backing import BackingStoreError, PageCorrupted

from .source import SourceError
from .wire import Parts

CONSOLE_BYTES = 64 << 10  # of each console, the end
MOST_TYPED = 64 << 10  # bytes that wait for one guest
SCREEN_PPNS = range(0xA0000 >> PAGE_SHIFT, 0xC0000 >> PAGE_SHIFT)  # the VGA's window
_NOWHERE = 0xFFFF
_SCREEN = struct.Struct("<5H")
_DEVICES = {"console": VirtualMachine.type, "keyboard": VirtualMachine.press}


def screen_bytes(screen: TextScreen) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A text screen as a part of a frame.

    Five words of 16 bits, little-endian: columns, rows, the cursor's row and column (0xffff: it is
    off), 1 if bit 7 of an attribute is blinking; then character and attribute of each cell.
    """
    row, column = screen.cursor or (_NOWHERE, _NOWHERE)
    head = _SCREEN.pack(screen.columns, screen.rows, row, column, screen.blink)
    return np.frombuffer(head + screen.cells, np.uint8)


def _is_blank(screen: TextScreen) -> bool:
    return not screen.cells[::2].strip(b"\0 ")


class Consoles:
    """Consoles and screens of ``host``, whose guests wait for input from now on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tails: dict[int, tuple[int, bytes]] = {}
        self._typed: dict[tuple[int, str], bytearray] = {}  # by VM and device
        host.listen()

    def tails(self) -> dict[int, tuple[int, bytes]]:
        """Of each VM the end of its console: where it starts in all it wrote, and the bytes."""
        for vm in self._host.vms:
            log = vm.serial_log
            start, content = self._tails.get(vm.vm_id, (0, b""))
            if start + len(content) != vm.serial_lost + len(log):
                kept = max(len(log) - CONSOLE_BYTES, 0)
                self._tails[vm.vm_id] = vm.serial_lost + kept, bytes(log[kept:])
        return dict(self._tails)

    def screens(self) -> Parts:
        """``screen:ID`` of each VM that shows text on its VGA, or did when it was powered off."""
        parts: Parts = {}
        for vm in self._host.vms:
            screen = _screen(vm)
            if screen is not None and not _is_blank(screen):
                parts[f"screen:{vm.vm_id}"] = screen_bytes(screen)
        return parts

    def type(self, vm: VirtualMachine, data: bytes, device: str) -> int:
        """Type on a VM's "console", or press the keys of its "keyboard" that a terminal sends so.

        Returns the bytes that wait until the guest reads them. Raises SourceError if too many wait
        already, or for another ``device``.
        """
        if device not in _DEVICES:
            raise SourceError(f'device: "{device[:40]}" is none of {", ".join(_DEVICES)}')
        waiting = self._typed.setdefault((vm.vm_id, device), bytearray())
        if len(waiting) + len(data) > MOST_TYPED:
            raise SourceError(f"{vm.name} does not read its {device}: {len(waiting)} bytes wait")
        waiting += data
        self.feed()
        return len(waiting)

    def feed(self) -> None:
        """Give the guests what they take of what was typed."""
        for vm in self._host.vms:
            for device, take in _DEVICES.items():
                waiting = self._typed.get((vm.vm_id, device))
                if not waiting:
                    continue
                if vm.outcome is not None:
                    waiting.clear()
                else:
                    del waiting[: take(vm, bytes(waiting))]


def _screen(vm: VirtualMachine) -> TextScreen | None:
    if vm.outcome is not None:
        return vm.last_screen
    window = vm.vmm.pmap.state[SCREEN_PPNS.start : SCREEN_PPNS.stop]
    if (window == PageState.UNMAPPED).all():  # nothing was ever printed there
        return None
    try:
        return vm.display
    except (BackingStoreError, PageCorrupted):
        return None
