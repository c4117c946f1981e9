# SPDX-License-Identifier: Apache-2.0
"""One live VM, opened: its process, its monitor, its RAM. Observation only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from .answers import understood
from .content import GuestContent
from .discovery import DiscoveredVm
from .errors import AccessDenied, CommandError, KernelFeatureMissing, LayoutError, ProcessGone
from .kernel_pages import KernelPages, Pagemap
from .page_states import (
    LivePageState,
    PageStates,
    has_pager,
    read_page_states,
    state_of_page,
)
from .process import Process
from .qmp import Monitor, open_monitor
from .ram import RamLayout, read_ram_layout

__all__ = ["ControlRegisters", "LiveVm", "open_kernel_pages"]

_MOST_PHYSICAL_ADDRESS_BITS = 52


@dataclass(frozen=True, slots=True)
class ControlRegisters:
    """The registers of one virtual processor that decide how addresses are translated."""

    cpu_index: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    rip: int
    privilege_level: int
    physical_address_bits: int


class LiveVm:
    """A VM of this host's QEMU. Use as a context manager, or ``close`` it.

    While it is open it holds the VM's QMP socket, which serves one client at a time. Raises
    ProcessGone if the process that was discovered has ended, LiveError if it cannot be opened.
    """

    def __init__(self, discovered: DiscoveredVm) -> None:
        self.discovered = discovered
        self.name = discovered.name
        self.pid = discovered.pid
        self._pagemap: Pagemap | None = None
        self._content: GuestContent | None = None
        self.monitor: Monitor | None = None
        self.process = Process(discovered.pid)
        try:
            if discovered.started and self.process.start_time() != discovered.started:
                raise ProcessGone(f"process {self.pid} is gone, and its number another's")
            self.monitor = open_monitor(discovered)
            self.layout: RamLayout = read_ram_layout(self.monitor, self.process)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the monitor and all descriptors; may be called again."""
        if self._content is not None:
            self._content.close()
        if self._pagemap is not None:
            self._pagemap.close()
        if self.monitor is not None:
            self.monitor.close()
        self._content = self._pagemap = self.monitor = None
        self.process.close()

    def release_monitor(self) -> None:
        """Let other clients have the QMP socket; the RAM layout stays as it was read."""
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None

    def ask(self) -> Monitor:
        """The monitor, connected anew if it was released or lost. Raises MonitorError."""
        if self.monitor is None or getattr(self.monitor, "closed", False):
            self.process.require_alive()
            self.monitor = open_monitor(self.discovered)
            # Sockets and domains go by name: they are this process's only while it is there.
            self.process.require_alive()
        return self.monitor

    def refresh_layout(self) -> None:
        """Read the RAM layout again: after memory was plugged in or out."""
        self.layout = read_ram_layout(self.ask(), self.process)
        if self._content is not None:
            self._content.close()
            self._content = None

    @property
    def pagemap(self) -> Pagemap:
        """QEMU's pagemap. Raises AccessDenied."""
        if self._pagemap is None:
            self._pagemap = Pagemap(self.process)
        return self._pagemap

    @property
    def content(self) -> GuestContent:
        """The content of its RAM."""
        if self._content is None:
            self._content = GuestContent(self.process, self.layout)
        return self._content

    def page_states(self, kernel: KernelPages | None) -> PageStates:
        """The states of all its pages now."""
        return read_page_states(self.process, self.layout, self.pagemap, kernel)

    def page_state(self, index: int, kernel: KernelPages | None = None) -> LivePageState:
        """The state of one page, by RAM page index. Without ``kernel`` merged pages are UNKNOWN."""
        return state_of_page(self.process, self.layout, self.pagemap, kernel, index)

    def has_pager(self, index: int) -> bool:
        """True if a userfaultfd answers for missing pages of the block with RAM page ``index``."""
        block = next(item for item in self.layout.blocks if index < item.first_index + item.pages)
        return has_pager(self.process, block)

    def processors(self) -> int:
        """Number of its virtual processors."""
        return len(self.ask().execute("query-cpus-fast"))

    def registers(self, cpu_index: int = 0) -> ControlRegisters:
        """Control registers of one virtual processor, as QEMU knows them now.

        Raises LayoutError for a machine that is no x86, CommandError if there is no such processor.
        """
        return read_registers(self.ask(), cpu_index)


def read_registers(monitor: Monitor, cpu_index: int) -> ControlRegisters:
    """Control registers of a virtual processor, as ``LiveVm.registers``."""
    name = monitor.name
    with understood(name):
        cpus = {cpu["cpu-index"]: cpu for cpu in monitor.execute("query-cpus-fast")}
        if cpu_index not in cpus:
            raise CommandError(
                f"{name}: no virtual processor {cpu_index}; it has 0 to {len(cpus) - 1}", ""
            )
        text = monitor.human("info registers", cpu_index=cpu_index)

        def register(register_name: str) -> int:
            match = re.search(rf"\b{register_name}\s*=\s*([0-9a-f]{{1,16}})\b", text)
            if match is None:
                raise LayoutError(f"{name}: no register {register_name}: not an x86 machine")
            return int(match[1], 16)

        return ControlRegisters(
            cpu_index=cpu_index,
            cr0=register("CR0"),
            cr3=register("CR3"),
            cr4=register("CR4"),
            efer=register("EFER") if "EFER=" in text else 0,
            rip=register("RIP" if "RIP=" in text else "EIP"),
            privilege_level=register("CPL"),
            physical_address_bits=_physical_address_bits(monitor, cpus[cpu_index]),
        )


def _physical_address_bits(monitor: Monitor, cpu: dict[str, Any]) -> int:
    """The width QEMU gives the processor's physical addresses, else the architecture's most."""
    try:
        bits = monitor.execute("qom-get", {"path": cpu["qom-path"], "property": "phys-bits"})
    except CommandError:
        return _MOST_PHYSICAL_ADDRESS_BITS
    return min(max(int(bits), 0), _MOST_PHYSICAL_ADDRESS_BITS) or _MOST_PHYSICAL_ADDRESS_BITS


def open_kernel_pages() -> tuple[KernelPages | None, str]:
    """The host's page flags and counts, or None and why this user or kernel has none."""
    try:
        return KernelPages(), ""
    except (AccessDenied, KernelFeatureMissing) as error:
        return None, str(error)
