# SPDX-License-Identifier: Apache-2.0
"""Putting back what was changed, from the record on disk: after a clean end, or after a death."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from memvirt.address import PAGE_BYTES
from memvirt.live.answers import balloon_bytes, run_state
from memvirt.live.discovery import DiscoveredVm, discover
from memvirt.live.errors import CommandError, LiveError, MonitorBusy, MonitorTimeout, ProcessGone
from memvirt.live.host_memory import read_host_pages
from memvirt.live.migration import MIGRATED
from memvirt.live.page_states import LivePageState
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.size import format_size

from .guest import set_balloon
from .ledger import Ledger, VmRecord, start_time
from .pageout import Adviser, bring_back

BALLOON_SECONDS = 20.0  # without progress, until a guest does not take its memory back
_NEAR = 1 << 20  # bytes of ``actual`` that make no difference,
_NEAR_SECONDS = 1.0  # if no more come for so long
_BUSY_SECONDS = 20.0  # for another client to leave a monitor
_MOST_BACK = 0.5  # of the host's available memory that pages from swap may take


def restore_all(
    ledger: Ledger,
    say: Callable[[str], object],
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Put everything back that is on record; one line to ``say`` for each thing.

    True if all of it is as it was. What failed stays on record, for the next try.
    """
    lines, done = ledger.put_all_back()
    for line in lines:
        say(line)
    for record in list(ledger.record.vms):
        done &= restore_vm(ledger, record, say, wait)
    return done


def restore_vm(
    ledger: Ledger,
    record: VmRecord,
    say: Callable[[str], object],
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Put one VM back; True, and forgotten, if it is as it was or has ended."""
    try:
        if start_time(record.pid) != record.started:
            raise ProcessGone(f"process {record.pid} is gone")
        found = discover([record.pid])
        if not found:
            raise ProcessGone(f"process {record.pid} is gone")
        with _open(found[0], wait) as vm:
            for line in _restore(vm, ledger, record, wait):
                say(f"{record.name}: {line}")
    except ProcessGone:
        say(f"{record.name}: has ended")
    except (LiveError, OSError) as error:
        say(f"{record.name}: not as it was: {error}")
        return False
    ledger.forget(record)
    return True


def _open(found: DiscoveredVm, wait: Callable[[float], object]) -> LiveVm:
    """The VM; a monitor that serves somebody else just now is waited for. Raises LiveError."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return LiveVm(found)
        except (MonitorBusy, MonitorTimeout):
            if time.monotonic() > deadline:
                raise
            wait(0.2)


def _restore(
    vm: LiveVm, ledger: Ledger, record: VmRecord, wait: Callable[[float], object]
) -> Iterator[str]:
    """Raises LiveError if something cannot be put back, OSError if that cannot go on record."""
    status = run_state(vm.ask())
    if status == MIGRATED:
        yield "has migrated to another host, its balloon with it"
        return
    if record.stopped:
        if status == "paused":
            vm.ask().execute("cont")
            yield "runs again"
        record.stopped = False
        ledger.save()  # who stops it from now on is somebody else
    failure = ""
    if record.balloon is not None:
        # What was plugged in or out meanwhile is the guest's own, and not of the balloon.
        plugged = vm.layout.pages * PAGE_BYTES - record.memory if record.memory else 0
        wanted = max(record.balloon + plugged, 0)
        size = format_size(wanted)
        if _deflate(vm, wanted, wait):
            yield f"has its {size} again"
        else:
            failure = f"its guest does not take its {size} back"
    if record.paged_out:
        back, left = _bring_back(vm, record.paged_out)
        yield f"{back} pages brought back from swap"
        if left:
            yield f"{left} pages stay in swap: this host has no memory to spare for them"
    if failure:
        raise LiveError(failure)


def _deflate(vm: LiveVm, memory_bytes: int, wait: Callable[[float], object]) -> bool:
    """True once the guest has ``memory_bytes`` again."""
    try:
        now = balloon_bytes(vm.ask())
    except CommandError as error:
        if error.error_class == "DeviceNotActive":
            return True  # the device has been unplugged, and its pages with it
        raise
    set_balloon(vm, memory_bytes)
    moved_at = time.monotonic()
    while now != memory_bytes:
        near = abs(now - memory_bytes) <= _NEAR
        if time.monotonic() - moved_at > (_NEAR_SECONDS if near else BALLOON_SECONDS):
            return near
        wait(0.05)
        before, now = now, balloon_bytes(vm.ask())
        if now != before:
            moved_at = time.monotonic()
    return True


def _bring_back(vm: LiveVm, pages: int) -> tuple[int, int]:
    """Bring up to ``pages`` back from swap; how many came, and how many had to stay there."""
    kernel, _ = open_kernel_pages()
    try:
        before = vm.page_states(kernel).where(LivePageState.SWAPPED)
        spare = int(read_host_pages().available * _MOST_BACK)
        chosen = before[: min(pages, spare)]
        with Adviser(vm.process) as adviser:
            bring_back(adviser, vm.layout, chosen)
        after = vm.page_states(kernel).state[chosen]
    finally:
        if kernel is not None:
            kernel.close()
    back = int(np.count_nonzero(after != LivePageState.SWAPPED))
    return back, min(pages, before.size) - back
