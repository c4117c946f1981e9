# SPDX-License-Identifier: Apache-2.0
"""``memvirt run``: a live view of a host, then a summary."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memvirt.host import Host
from memvirt.scenario import Scenario
from memvirt.size import format_size
from memvirt.virtual_machine import EndReason, VirtualMachine

_PAGE = 4096


def _last_line(vm: VirtualMachine) -> str:
    lines = bytes(vm.serial_log[-400:]).decode("ascii", "replace").split("\n")
    return next((line.strip() for line in reversed(lines[:-1]) if line.strip()), "")


def _state(vm: VirtualMachine) -> Text:
    if vm.outcome is None:
        return Text("running", style="cyan")
    good = vm.outcome.reason is EndReason.SUCCESS
    return Text("verified" if good else vm.outcome.reason.value, style="green" if good else "red")


def vm_table(host: Host, *, wide: bool) -> Table:
    """A row for each VM. With ``wide`` the guest's last line, else what was done to its pages."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("VM", "left"),
        ("PAGING", "left"),
        ("STATE", "left"),
        ("TIME", "right"),
        ("MEMSZ", "right"),
        ("GRANT", "right"),
        ("SHRD", "right"),
        ("ASIDE", "right"),
        ("TABLES", "right"),
        ("MOVED", "right"),
        ("BACK", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("CONSOLE" if wide else "REFS/WALK", no_wrap=True, overflow="ellipsis")
    for vm in host.vms:
        memory = vm.vmm.statistics()
        resident = memory.frames_guest + memory.shared
        walks = f"{memory.walk_references / memory.walks:.2f}" if memory.walks else "-"
        table.add_row(
            vm.name,
            vm.paging.name.lower(),
            _state(vm),
            f"{vm.virtual_ns / 1e9:.2f}s",
            format_size(vm.memory),
            format_size(resident * _PAGE),
            format_size(memory.shared * _PAGE),
            format_size(memory.swapped * _PAGE),
            format_size((memory.frames_shadow + memory.frames_nested) * _PAGE),
            f"{memory.moved:,}",
            f"{memory.brought_back:,}",
            _last_line(vm) if wide else walks,
        )
    return table


def _header(host: Host, started: float) -> Text:
    machine = host.machine.statistics()
    configured = sum(vm.memory for vm in host.vms)
    return Text(
        f"machine {format_size(machine.frames * _PAGE)}, {format_size(machine.free * _PAGE)} free; "
        f"{len(host.vms)} VMs of {format_size(configured)} in all; "
        f"{time.monotonic() - started:.1f} s",
        style="bold",
    )


def run_scenario(scenario: Scenario) -> int:
    """Run a scenario with a live view; 0 only if every guest verified its memory."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    started = time.monotonic()
    with Host(scenario) as host:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4, transient=True) as live:

                def redraw() -> None:
                    live.update(Group(_header(host, started), vm_table(host, wide=True)))

                host.run(redraw)
        else:
            host.run()
        console.print(_header(host, started))
        console.print(vm_table(host, wide=False))
        for vm in host.vms:
            if vm.outcome is None or vm.outcome.reason is not EndReason.SUCCESS:
                detail = vm.outcome.detail if vm.outcome else "never started"
                console.print(f"{vm.name}: {detail}: {_last_line(vm)}", style="red", markup=False)
        for violation in host.violations[:20]:
            console.print(str(violation), style="red", markup=False)
        verified = sum(
            vm.outcome is not None and vm.outcome.reason is EndReason.SUCCESS for vm in host.vms
        )
        console.print(
            f"{verified} of {len(host.vms)} guests verified their memory; "
            f"{len(host.violations)} broken invariants"
        )
        return 0 if host.succeeded else 1
