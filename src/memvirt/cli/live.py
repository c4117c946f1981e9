# SPDX-License-Identifier: Apache-2.0
"""What ``memvirt run`` draws: esxtop's screen while the host runs, a summary when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from memvirt.host.host import Host
from memvirt.observe.esxtop import (
    Column,
    Interval,
    cell,
    choose_columns,
    header_lines,
    mebibytes,
    time_line,
)
from memvirt.observe.summary import Summary, VmPeaks
from memvirt.size import format_size
from memvirt.vm.outcome import EndReason
from memvirt.vm.virtual_machine import VirtualMachine
from memvirt.vmkernel.samples import Sample

from .columns import table_of

_PAGE = 4096
_TEXT_COLUMNS = {"NAME", "STATE", "GROUP", "MCTL?"}
_WIDE = 132
_ON_WIDE_TERMINALS = {"PAGING", "VIRTUAL", "WAITED", "MEMSZ", "READ BACK", "REFS/WALK"}
_GOOD = (EndReason.SUCCESS, EndReason.POWER_OFF)


def last_line(vm: VirtualMachine) -> str:
    """The last full line the guest printed."""
    lines = bytes(vm.serial_log[-400:]).decode("ascii", "replace").split("\n")
    return next((line.strip() for line in reversed(lines[:-1]) if line.strip()), "")


def vm_table(interval: Interval, columns: Sequence[Column]) -> Table:
    """A row for each VM."""
    styles = {"off": "dim", "paused": "red", "blocked": "yellow", "throttled": "yellow"}
    return table_of(
        (column.name for column in columns),
        _TEXT_COLUMNS,
        (
            ([cell(column, interval, vm) for column in columns], styles.get(vm.condition, ""))
            for vm in interval.now.vms
        ),
    )


class Screen:
    """esxtop's memory screen of a running host."""

    def __init__(self, host: Host, names: Sequence[str], columns: list[Column] | None) -> None:
        self._host = host
        self._name_width = max(len(name) for name in names)
        self._columns = columns
        self._started = time.monotonic()
        self._before: Sample | None = None

    def draw(self, width: int, height: int) -> Group:
        """The screen now, for a terminal of that size."""
        interval = Interval(self._host.sample(), self._before)
        if interval.seconds > 0 or self._before is None:
            self._before = interval.now
        columns = self._columns or choose_columns(width, self._name_width)
        lines = [time_line(interval, time.monotonic() - self._started), *header_lines(interval)]
        parts: list[Text | Table] = [
            Text("\n".join(lines), no_wrap=True, overflow="ellipsis"),
            Text(),
            vm_table(interval, columns),
        ]
        room = height - len(lines) - len(interval.now.vms) - 4
        decisions = list(self._host.events)[-max(min(room, 6), 0) :] if room > 0 else []
        if decisions:
            parts.append(Text())
        for event in decisions:
            who = event.vm or "host"
            text = f"{event.time_ns / 1e9:8.3f} s  {who:<{self._name_width}}  {event.mechanism:<10}"
            text += f" {event.pages:>7} pages  {event.reason}"
            parts.append(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)


def _verdict(vm: VirtualMachine) -> Text:
    if vm.outcome is None:
        return Text("not ended", style="red")
    if vm.outcome.reason is EndReason.SUCCESS:
        return Text("verified", style="green")
    good = vm.outcome.reason is EndReason.POWER_OFF
    return Text(vm.outcome.reason.value, style="green" if good else "red")


def _summary_row(host: Host, vm: VirtualMachine, peaks: VmPeaks) -> dict[str, str | Text]:
    memory = host.final_statistics(vm)
    walks = f"{memory.walk_references / memory.walks:.2f}" if memory.walks else "-"
    return {
        "VM": vm.name,
        "PAGING": vm.paging.name.lower(),
        "VERDICT": _verdict(vm),
        "VIRTUAL": f"{vm.virtual_ns / 1e9:.2f} s",
        "WAITED": f"{memory.stall_ns / 1e9:.2f} s",
        "MEMSZ": format_size(vm.memory),
        "CONSUMED": format_size(peaks.consumed * _PAGE),
        "SHARED": format_size(peaks.shared_saved * _PAGE),
        "BALLOON": format_size(peaks.balloon * _PAGE),
        "ZIPPED": format_size(peaks.zipped * _PAGE),
        "SWAPPED": format_size(peaks.swapped * _PAGE),
        "READ BACK": f"{memory.brought_back:,}",
        "REFS/WALK": walks,
    }


def summary_table(host: Host, summary: Summary, width: int) -> Table:
    """A row for each VM: how it ended, and the most of everything."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    rows = [_summary_row(host, vm, summary.vms.get(vm.name, VmPeaks())) for vm in host.vms]
    headings = [h for h in rows[0] if width >= _WIDE or h not in _ON_WIDE_TERMINALS] if rows else []
    for heading in headings:
        left = heading in ("VM", "PAGING", "VERDICT")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[heading] for heading in headings))
    return table


def print_summary(console: Console, host: Host, summary: Summary, wall_seconds: float) -> None:
    """What the run came to."""
    machine = host.machine.frames
    configured = sum(vm.memory for vm in host.vms) // _PAGE
    console.print(
        f"{len(host.vms)} VMs, {mebibytes(configured):.0f} MB configured on "
        f"{mebibytes(machine):.0f} MB of machine memory: overcommitted "
        f"{configured / machine:.2f} x; {host.kernel.time_ns / 1e9:.2f} s virtual, "
        f"{wall_seconds:.1f} s wall; worst state {host.kernel.state.worst.name.lower()}",
        style="bold",
        highlight=False,
    )
    console.print(summary_table(host, summary, console.width))
    console.print("\nmost at one moment", style="bold")
    for name, pages, meaning in summary.mechanisms():
        console.print(f"  {name:<13} {format_size(pages * _PAGE):>10}  {meaning}", highlight=False)
    if summary.in_use:
        console.print(
            f"  {format_size(summary.in_use * _PAGE)} of guest memory in use at most, in "
            f"{format_size(summary.frames_then * _PAGE)} of machine memory",
            highlight=False,
        )
    counts = host.events.counts
    decisions = ", ".join(f"{count} {mechanism}" for mechanism, count in counts.most_common())
    console.print(f"decisions: {decisions}", highlight=False)
    _print_troubles(console, host)
    verified = sum(vm.outcome is not None and vm.outcome.reason in _GOOD for vm in host.vms)
    console.print(
        f"{verified} of {len(host.vms) + len(host.refusals)} guests verified their memory; "
        f"{len(host.violations)} broken invariants",
        highlight=False,
    )


def _print_troubles(console: Console, host: Host) -> None:
    for vm in host.vms:
        cost = host.host_time(vm)
        if cost.throttled:
            console.print(
                f"{vm.name}: throttled {cost.throttled} times: its quanta took "
                f"{cost.processor_seconds:.1f} s of a processor for {vm.virtual_ns / 1e9:.3f} s; "
                f"it sat out {cost.rounds_sat_out} of {host.rounds} rounds",
                style="yellow",
                markup=False,
                highlight=False,
            )
        if vm.outcome is None or vm.outcome.reason not in _GOOD:
            detail = vm.outcome.detail if vm.outcome else "not ended"
            console.print(f"{vm.name}: {detail}: {last_line(vm)}", style="red", markup=False)
    for refusal in host.refusals:
        console.print(refusal, style="red", markup=False)
    for error in host.errors:
        console.print(error.rstrip(), style="red", markup=False, highlight=False)
    for violation in host.violations[:20]:
        console.print(str(violation), style="red", markup=False)
