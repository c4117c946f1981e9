# SPDX-License-Identifier: Apache-2.0
"""gdb's ``monitor`` commands: what memvirt knows of the VM and no other stub does."""

from __future__ import annotations

from memvirt.address import GuestVirtualAddress
from memvirt.observe.address_map import map_address, printable, render
from memvirt.observe.statistics import render as render_statistics
from memvirt.observe.statistics import vm_statistics
from memvirt.observe.view import PageUnavailable, live_view
from memvirt.vm.virtual_machine import VirtualMachine

_HELP = """\
monitor map ADDRESS  every step from a guest virtual address to its machine page
monitor screen       the VGA text screen
monitor statistics   memory, walks and exits so far
"""


def _map(vm: VirtualMachine, address: str) -> str:
    try:
        gva = int(address, 0)
    except ValueError:
        return f"{printable(address)} is no address; write for instance 0x400000\n"
    try:
        return render(map_address(live_view(vm), GuestVirtualAddress(gva))) + "\n"
    except ValueError as error:
        return f"{error}\n"


def _screen(vm: VirtualMachine) -> str:
    try:
        screen = live_view(vm).screen()
    except PageUnavailable as error:
        return f"{error}\n"
    return "the guest has left text mode\n" if screen is None else f"{screen.text()}\n"


def monitor(vm: VirtualMachine, command: str) -> str:
    """What ``command`` says; the list of commands for one that is not known."""
    words = command.split()
    if words[:1] == ["map"] and len(words) == 2:
        return _map(vm, words[1])
    if words == ["screen"]:
        return _screen(vm)
    if words == ["statistics"]:
        return render_statistics(vm_statistics(vm)) + "\n"
    return _HELP
