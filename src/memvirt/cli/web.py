# SPDX-License-Identifier: Apache-2.0
"""A host, one VM or a record in a browser, until Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memvirt.host.host import Host, HostInterrupted
from memvirt.images import image_path
from memvirt.scenario.keys import MachineOptions, VmOptions
from memvirt.scenario.scenario import Scenario
from memvirt.size import parse_size
from memvirt.vmkernel.samples import Sample

from .errors import INTERRUPTED, UsageError, web_tools
from .interruption import Interruption
from .ready import make_ready

if TYPE_CHECKING:
    from .boot import BootOptions

_LOOK_SECONDS = 0.25


def _announce(url: str, what: str) -> None:
    print(f"memvirt: {what} at {url}", file=sys.stderr)
    print("memvirt: who has this address may change the host; Ctrl-C ends", file=sys.stderr)


def serve_host(
    host: Host,
    *,
    title: str,
    address: str,
    on_sample: Callable[[Sample], object],
    interval: float,
    interruption: Interruption,
    columns: Sequence[str] = (),
    speed: float | None = None,
    idles: bool = False,
) -> None:
    """Serve ``host``, which a page runs, until somebody interrupts.

    The host begins with the first page. ``on_sample`` is called every ``interval`` virtual
    seconds. ``speed`` is in rounds a second, 0 as fast as it goes, None what a person can follow.
    ``idles`` is that of ``HostSource``. Raises HostInterrupted if VMs still ran, ServerError.
    """
    with web_tools():
        from memvirt.web import host_page  # noqa: PLC0415
        from memvirt.web.host_source import READABLE, HostSource  # noqa: PLC0415
        from memvirt.web.server import WebServer, parse_address  # noqa: PLC0415
    next_sample = 0

    def after_round() -> None:
        nonlocal next_sample
        if host.kernel.time_ns >= next_sample or not host.running:
            next_sample = host.kernel.time_ns + int(interval * 1e9)
            on_sample(host.sample())

    source = HostSource(
        host,
        title=title,
        columns=columns,
        idles=idles,
        speed=READABLE if speed is None else speed,
        after_round=after_round,
    )
    server = WebServer(
        source,
        parse_address(address),
        answers=host_page.answers(source),
        commands=host_page.commands(source),
    )
    on_sample(host.sample())
    source.start()
    server.start()
    try:
        _announce(server.url, title)
        said = False
        while not interruption.asked:
            if (source.done or source.error) and not said:
                said = True
                print(f"memvirt: {source.error or 'all VMs have ended'}", file=sys.stderr)
            interruption.wait(_LOOK_SECONDS)
    finally:
        server.close()
        source.close()
    if not source.done:
        raise HostInterrupted


def boot_in_browser(
    options: BootOptions, address: str, *, timeout: float | None, check: bool
) -> int:
    """One VM on a host of its own; the exit status is that of its outcome."""
    from .boot import enough_for  # noqa: PLC0415

    if options.paging not in ("shadow", "nested"):
        raise UsageError(
            f"--web shows a host, whose VMs are shadow or nested, not {options.paging}"
        )
    make_ready()
    image = image_path(options.image)
    memory = parse_size(options.memory, what="guest memory")
    machine = parse_size(
        options.machine_memory or enough_for(options.memory), what="machine memory"
    )
    vm = VmOptions(
        name=Path(options.image).name,
        image=str(image),
        memory=memory,
        paging="shadow" if options.paging == "shadow" else "nested",
        append=options.append,
        initrd=None if options.initrd is None else str(options.initrd),
    )
    scenario = Scenario(
        machine=MachineOptions(memory=machine, scatter_seed=options.scatter_seed),
        vm=(vm,),
        check=check,
    )
    if timeout is not None:
        scenario = scenario.model_copy(update={"timeout": timeout})
    with Interruption() as interruption, Host(scenario) as host:
        try:
            serve_host(
                host,
                title=vm.name,
                address=address,
                on_sample=lambda sample: None,
                interval=1,
                speed=0,
                idles=True,
                interruption=interruption,
            )
        except HostInterrupted:
            return INTERRUPTED
        outcome = host.vms[0].outcome
        return 1 if outcome is None else outcome.exit_status


def serve_record(path: Path, address: str) -> int:
    """Show what was recorded until somebody interrupts."""
    with web_tools():
        from memvirt.web import record_source  # noqa: PLC0415
        from memvirt.web.server import WebServer, parse_address  # noqa: PLC0415
    source = record_source.RecordSource(path)
    server = WebServer(
        source, parse_address(address), answers=record_source.answers(source), commands={}
    )
    with Interruption() as interruption:
        source.start()
        server.start()
        print(f"memvirt: {path} at {server.url}", file=sys.stderr)
        while not interruption.asked:
            interruption.wait(_LOOK_SECONDS)
        server.close()
        source.close()
    return 0
