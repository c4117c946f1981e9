# SPDX-License-Identifier: Apache-2.0
"""``memvirt manage``: the VMkernel's policy on this host's live VMs, until somebody ends it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.live.manage.group_reclaim import give_limits_back
from memvirt.live.manage.host_plan import HostPlan, VmPlan, VmSelector
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.manager import Manager
from memvirt.live.manage.restore import restore_all
from memvirt.live.working_set_way import WorkingSetWay
from memvirt.observe.record import EventWriter
from memvirt.output_file import check_outputs
from memvirt.scenario.keys import names_of
from memvirt.scenario.scenario import Scenario, load_scenario
from memvirt.scenario.vm_settings import vm_settings
from memvirt.size import format_size
from memvirt.vmkernel.events import Event, Mechanism
from memvirt.vmkernel.samples import Sample

from .interruption import Interruption


@dataclass(frozen=True, slots=True)
class ManageCommand:
    """The options of ``memvirt manage``."""

    file: Path
    dry_run: bool = False
    seconds: float | None = None
    events: Path | None = None
    status: float = 10.0


def host_plan(scenario: Scenario) -> HostPlan:
    """What a scenario says of a live host."""
    vms = []
    for vm in scenario.vm:
        for name in names_of(vm):
            selector = VmSelector(name, vm.live.qmp, vm.live.domain, vm.live.command_line)
            vms.append(VmPlan(selector, vm_settings(vm, name), vm.live.cgroup))
    live = scenario.live
    return HostPlan(
        memory=scenario.machine.memory // PAGE_BYTES,
        vms=vms,
        options=scenario.machine.Mem,
        seed=scenario.seed,
        interval=live.interval,
        cgroup=live.cgroup,
        balloon=live.balloon,
        pageout=live.pageout,
        group_reclaim=live.cgroup_reclaim,
        ksm=live.ksm,
        block=live.block,
        working_set=WorkingSetWay(live.working_set),
        scan_share=live.scan_percent / 100,
        balloon_patience=live.balloon_patience,
        balloon_retry=live.balloon_retry,
    )


def _print(text: str) -> None:
    print(text, flush=True)


def event_line(event: Event) -> str:
    """One decision: when, of which VM, what, how much of memory, why."""
    amount = ""
    if event.pages and event.mechanism not in (Mechanism.STATE, Mechanism.POWER_ON):
        sign = "+" if event.pages > 0 else "-"
        amount = sign + format_size(abs(event.pages) * PAGE_BYTES)
    return (
        f"{event.time_ns / 1e9:8.1f} s  {event.vm or '-':<12} {event.mechanism:<10} {amount:>11}  "
        f"{event.reason}"
    )


def status_line(sample: Sample) -> str:
    """The host's state and what each VM has."""
    host = sample.host
    parts = [
        f"{host.time_ns / 1e9:8.1f} s  state {host.state.name.lower()}, "
        f"free {format_size(host.free * PAGE_BYTES)}"
    ]
    for vm in sample.vms:
        if vm.condition == "off":
            continue
        parts.append(
            f"{vm.name} {format_size(vm.consumed * PAGE_BYTES)} of "
            f"{format_size(vm.target * PAGE_BYTES)}, {vm.active_percent:.0f} % active, "
            f"balloon {format_size(vm.balloon * PAGE_BYTES)}, "
            f"swap {format_size(vm.swapped * PAGE_BYTES)}"
        )
    return "; ".join(parts)


def restore_only() -> int:
    """Put back what a killed manager has changed; exit status 0 if all of it is as it was."""
    with Ledger() as ledger:
        if ledger.record.empty:
            _print("nothing to restore")
            return 0
        return 0 if restore_all(ledger, _print) else 1


def manage(options: ManageCommand) -> int:
    """Manage until Ctrl-C or SIGTERM, or for so long as was asked for."""
    plan = host_plan(load_scenario(options.file))
    check_outputs({"--events": options.events}, {"HOST.toml": options.file})
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        ledger = None if options.dry_run else stack.enter_context(Ledger())
        for line in give_limits_back(ledger) if ledger is not None else ():
            _print(line)  # a VM must not wait for it until everything else is there
        manager = stack.enter_context(Manager(plan, ledger, dry_run=options.dry_run))
        if options.events is not None:
            stack.enter_context(EventWriter(manager.kernel.events, options.events))
        manager.kernel.events.subscribe(lambda event: _print(event_line(event)), replay=True)
        _loop(manager, options, plan.interval, interruption)
        _print("putting everything back" if ledger is not None else "dry run: nothing was changed")
        return 0 if manager.close() else 1


def _loop(
    manager: Manager, options: ManageCommand, interval: float, interruption: Interruption
) -> None:
    started = time.monotonic()
    next_status = started
    first = True
    while not interruption.asked:
        began = time.monotonic()
        if options.seconds is not None and began - started >= options.seconds:
            return
        manager.step()
        if first:
            manager.restore_others()
            first = False
        if options.status and began >= next_status:
            next_status = began + options.status
            _print(status_line(manager.sample()))
        interruption.sleep(max(began + interval - time.monotonic(), 0.0))
