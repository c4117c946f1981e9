# SPDX-License-Identifier: Apache-2.0
"""KSM for managed VMs: whether it may be switched on, and how fast it scans.

KSM has one pool for the whole host: all memory that asks for it is merged with all other. Salts
(``Mem.ShareForceSalting``) can be kept only if all memory it would look at belongs to VMs of one
salt: one group shares, the others were started with ``mem-merge=off``. Anything else is refused.
Whether a VM takes part is decided when QEMU starts; it cannot be changed from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memvirt.live.discovery import DiscoveredVm
from memvirt.live.ksm import KSM_DIRECTORY, ksm_status
from memvirt.vmkernel.options import Salting
from memvirt.vmkernel.samples import HostState
from memvirt.vmkernel.vmkernel import VmKernel

from .guest import LiveGuest
from .ledger import Ledger

_SLEEP_MILLISECONDS = 20
_PRESSURE_FACTOR = 8  # as the VMkernel's own scan
_MOST_PAGES = 100_000  # scanned at one go


class KsmControl:
    """Switches KSM on for VMs of one salt, sets its rate; the ledger puts it back."""

    def __init__(
        self,
        kernel: VmKernel,
        ledger: Ledger | None,
        note: Callable[[str, str], object],
        *,
        dry_run: bool,
        wanted: bool,
        directory: Path = KSM_DIRECTORY,
    ) -> None:
        self._kernel, self._ledger, self._note = kernel, ledger, note
        self._dry_run = dry_run
        self._wanted = wanted and kernel.options.share_scan_time > 0
        self._directory = directory
        self._said = ""
        self._allowed = False
        self._pages = 0
        self._set: tuple[int, int] | None = None

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            if text:
                self._note("", text)

    def update(self, guests: Sequence[LiveGuest], others: Sequence[DiscoveredVm]) -> None:
        """The VMs that are managed now, and all QEMU processes of the host."""
        merging = [
            guest for guest in guests
            if any(block.ksm_can_merge for block in guest.vm.layout.blocks)
        ]  # fmt: skip
        self._pages = sum(guest.pages for guest in merging)
        if problem := self._problem(guests, merging, others):
            running = ksm_status(self._directory)
            if self._wanted:
                self._say(f"KSM stays as it is: {problem}")
            elif running is not None and running.running and len(merging) > 1:
                self._say(f"KSM runs on this host, and salts are not kept: {problem}")
        self._allowed = self._wanted and not problem and bool(merging)

    def _problem(
        self,
        guests: Sequence[LiveGuest],
        merging: Sequence[LiveGuest],
        others: Sequence[DiscoveredVm],
    ) -> str:
        """Why the salts of the VMs cannot be kept with KSM; "" if they can."""
        if ksm_status(self._directory) is None:
            return "this kernel has no KSM (CONFIG_KSM)"
        if not merging:
            return "no managed VM has memory that KSM merges (private memory, mem-merge=on)"
        if self._kernel.options.share_force_salting is Salting.NONE:
            return ""
        managed = {guest.vm_id for guest in guests}
        strangers = [vm.name for vm in others if vm.pid not in managed and vm.merges]
        groups = {vm.guest.vm_id: vm.settings.group for vm in self._kernel.vms}
        salts: dict[int, list[str]] = {}
        for guest in merging:
            salt = self._kernel.salt(guest.vm_id, groups.get(guest.vm_id, ""))
            salts.setdefault(salt, []).append(guest.name)
        if len(salts) > 1:
            first, second, *_ = salts.values()
            return (
                f"KSM has one pool, and {first[0]} and {second[0]} may not share "
                "(Mem.ShareForceSalting); give all merging VMs one group, or start the others with "
                "-machine mem-merge=off"
            )
        if strangers:
            return (
                f"KSM has one pool, and {', '.join(strangers)} would share too but is not managed; "
                "start it with -machine mem-merge=off, or set Mem.ShareForceSalting = 0"
            )
        return ""

    def adjust(self, state: HostState) -> None:
        """Set the rate: all memory once in Mem.ShareScanTime, faster when memory is short."""
        if not self._allowed:
            return
        options = self._kernel.options
        seconds = options.share_scan_time * 60
        rate = self._pages / seconds * (_PRESSURE_FACTOR if state > HostState.HIGH else 1)
        rate = min(rate, options.share_rate_max)
        scan = min(max(int(rate * _SLEEP_MILLISECONDS / 1000), 1), _MOST_PAGES)
        if self._set == (scan, 1):
            return
        self._say(
            f"KSM on, {scan * 1000 // _SLEEP_MILLISECONDS} pages/s: state {state.name.lower()}"
        )
        self._set = (scan, 1)
        if self._dry_run or self._ledger is None:
            return
        for name, value in (
            ("sleep_millisecs", _SLEEP_MILLISECONDS), ("pages_to_scan", scan), ("run", 1),
        ):  # fmt: skip
            self._ledger.change_setting(self._directory / name, str(value))
