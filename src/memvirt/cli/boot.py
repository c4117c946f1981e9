# SPDX-License-Identifier: Apache-2.0
"""``memvirt boot``: one VM, its serial console here, statistics at the end."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from memvirt.address import GuestVirtualAddress
from memvirt.images import image_path
from memvirt.machine.machine import Machine
from memvirt.machine.memory import MachineMemoryExhausted
from memvirt.observe.address_map import map_address, render
from memvirt.observe.snapshot import save_snapshot
from memvirt.observe.statistics import as_json, vm_statistics
from memvirt.observe.statistics import render as render_statistics
from memvirt.observe.view import live_view
from memvirt.output_file import check_outputs, write_text
from memvirt.platform.boot.protocol import Protocol
from memvirt.size import parse_size
from memvirt.vm.outcome import EndReason
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmm.check import Violation, check_machine

from .console import STDIO, Console
from .display import TerminalDisplay, as_text
from .errors import UsageError
from .escape import HELP, EscapeKeys, Typed
from .gdb import gdb_session
from .interruption import Interruption, interrupts_raise
from .ready import make_ready

_LAST_LINES, _MOST_LINES = 24, 100
# Ends that registers and walks explain.
_DEATHS = (
    EndReason.TRIPLE_FAULT, EndReason.NO_FIRMWARE, EndReason.MISCONFIGURED,
    EndReason.ENGINE_ERROR, EndReason.HALTED,
)  # fmt: skip
_CHECK_EVERY = 32  # quanta between two runs of the consistency checker


@dataclass(frozen=True, slots=True)
class BootOptions:
    """The options of ``memvirt boot``, and of ``memvirt map --boot``."""

    image: str
    memory: str = "64M"
    machine_memory: str | None = None
    paging: str = "nested"
    append: str = ""
    initrd: Path | None = None
    protocol: Protocol = Protocol.AUTO
    scatter_seed: int | None = 1
    success_code: int = 0x10


def enough_for(memory: str) -> int:
    """Machine memory for a VM of ``memory``: all of its pages, and its page tables in any mode."""
    size = parse_size(memory, what="guest memory")
    return max(256 << 20, size + (size // 8 & -4096) + (32 << 20))


def make_vm(options: BootOptions, console: Console | None) -> VirtualMachine:
    """The machine and the VM of the options, image loaded. Raises the errors of its parts."""
    machine_memory: int | str = options.machine_memory or enough_for(options.memory)
    machine = Machine(machine_memory, scatter_seed=options.scatter_seed)
    name = Path(options.image).name
    try:
        vm = VirtualMachine(
            machine,
            memory=options.memory,
            paging=options.paging,
            name=name,
            serial=console.write if console else None,
        )
        vm.success_code = options.success_code
        initrd: bytes | Path = b"" if options.initrd is None else options.initrd
        vm.load(
            image_path(options.image),
            append=options.append,
            initrd=initrd,
            protocol=options.protocol,
        )
    except MachineMemoryExhausted as error:
        raise UsageError(
            f"--machine-memory {machine_memory} is too small to start {name}: {error}"
        ) from error
    return vm


def death_report(vm: VirtualMachine) -> str:
    """Registers, and the walks of RIP and CR2, of a VM that died."""
    view = live_view(vm)
    names = list(view.registers)
    lines = [
        "  ".join(f"{name:<6} {view.registers[name]:#018x}" for name in names[i : i + 3])
        for i in range(0, len(names), 3)
    ]
    code = vm.processor.segment("cs")
    lines.append(f"cs     {code.selector:#06x}  privilege level {vm.processor.privilege_level}")
    for name in ("rip", "cr2"):
        lines.append(f"--- walk of {name.upper()}")
        try:
            lines.append(render(map_address(view, GuestVirtualAddress(view.registers[name]))))
        except ValueError as error:
            lines.append(str(error))
    return "\n".join(lines)


def last_lines(vm: VirtualMachine) -> str:
    """The end of what the guest printed on its console, from its panic on if it is near."""
    lines = bytes(vm.serial_log).decode("utf-8", "replace").replace("\r", "").rstrip().split("\n")
    lines = lines[-_MOST_LINES:]
    panics = [number for number, line in enumerate(lines) if "Kernel panic" in line]
    start = min([*panics[:1], max(len(lines) - _LAST_LINES, 0)])
    return "\n".join(["--- the console's last lines", *lines[start:]])


def boot(
    options: BootOptions,
    *,
    serial: str,
    timeout: float | None,
    check: bool,
    stats: Path | None,
    snapshot: Path | None,
    display: bool = False,
    gdb: str | None = None,
) -> int:
    """Boot and run to the end; returns the exit status.

    With ``display`` the text screen has the terminal: what comes on the serial console, if that is
    there too, is printed after it. ``gdb`` is a port or a socket: the guest waits for gdb there.
    """
    files = {"--stats": stats, "--snapshot": snapshot}
    files["--serial"] = None if serial == STDIO else Path(serial)
    check_outputs(files, {"the image": image_path(options.image), "--initrd": options.initrd})
    make_ready()
    console = Console(serial)
    drawn = display and TerminalDisplay.is_possible()
    held = drawn and serial == STDIO
    vm = make_vm(options, None if held else console)
    if vm.boot_image is not None and vm.boot_image.added_parameters:
        added = " ".join(vm.boot_image.added_parameters)
        print(f"memvirt: added to the kernel command line: {added}", file=sys.stderr)
    console.open()
    violations: list[Violation] = []
    quanta = 0
    halted_ns = 0
    interactive = serial == STDIO and os.isatty(0)
    vm.wakes_on_input = interactive
    escapes = EscapeKeys()
    pressed = bytearray()  # what the guest's keyboard had no room for yet waits
    interruption = Interruption()
    terminal = TerminalDisplay(vm)
    if interactive:
        terminal.message = "memvirt: Ctrl-A x ends the VM, Ctrl-A h lists the rest"

    def between_quanta(vm: VirtualMachine) -> None:
        nonlocal quanta, halted_ns, pressed
        quanta += 1
        if drawn:
            terminal.draw()
        if session is not None:
            session.between_quanta()
        if interactive and console.input_open:
            # Somebody is typing: an idle guest waits in the host's time, not in a busy loop.
            console.wait((vm.halted_ns - halted_ns) / 1e9, interruption)
            halted_ns = vm.halted_ns
        if interruption.asked:
            vm.stop()
            return
        vm.wakes_on_input = interactive and console.input_open
        typed = escapes.take(console.read()) if interactive else Typed(console.read())
        if typed.keys and drawn and interactive:
            pressed += typed.keys  # a guest with a screen is typed to at its keyboard
        elif typed.keys:
            vm.type(typed.keys)
        if pressed:
            del pressed[: vm.press(bytes(pressed))]
        if typed.help and drawn:
            terminal.message = HELP.rstrip()
        elif typed.help:
            print(f"\n{HELP}", end="", file=sys.stderr)
        if typed.end:
            vm.stop()
            return
        if check and quanta % _CHECK_EVERY == 0:
            violations.extend(check_machine(vm.machine, [vm.vmm]))

    with (
        interruption,
        gdb_session(vm, gdb, interruption) as session,
        console.keys_unbuffered(),
        terminal if drawn else nullcontext(),
    ):
        outcome = vm.run(timeout=timeout, on_quantum=between_quanta)
    interrupts_raise()
    if held:
        if vm.serial_lost:
            print(f"memvirt: the first {vm.serial_lost} bytes are not kept", file=sys.stderr)
        console.write(bytes(vm.serial_log))
    if check:
        violations.extend(check_machine(vm.machine, [vm.vmm]))
    console.finish_line()
    console.close()
    if display:
        print(as_text(vm.display), flush=True)
    statistics = vm_statistics(vm)
    detail = f" ({outcome.detail})" if outcome.detail else ""
    print(f"\n{vm.name}: {outcome.reason.value}{detail}", file=sys.stderr)
    if outcome.reason in _DEATHS:
        print(death_report(vm), file=sys.stderr)
    if outcome.reason is EndReason.PANIC:
        print(last_lines(vm), file=sys.stderr)
    print(render_statistics(statistics), file=sys.stderr)
    if check:
        print(f"consistency    {len(violations)} violations", file=sys.stderr)
        for violation in violations[:20]:
            print(f"  {violation}", file=sys.stderr)
    if stats is not None:
        write_text(stats, json.dumps(as_json(statistics), indent=2) + "\n")
    if snapshot is not None:
        save_snapshot(vm, snapshot)
    vm.power_off()
    return 3 if violations and outcome.succeeded else outcome.exit_status
