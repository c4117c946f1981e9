# SPDX-License-Identifier: Apache-2.0
"""memvirt: memory virtualization as a hypervisor does it, running real x86-64 guests.

What this package offers is imported when it is first used: Numba, which compiles the "hardware",
takes most of a second to import, and help and versions should not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memvirt.errors import MemvirtError
    from memvirt.machine.machine import Machine
    from memvirt.platform.boot.image import BootError
    from memvirt.vm.outcome import EndReason, Outcome
    from memvirt.vm.virtual_machine import VirtualMachine
    from memvirt.vmm.monitor import PagingMode

__version__ = "0.1.0"

_MODULES = {
    "BootError": "memvirt.platform.boot.image",
    "EndReason": "memvirt.vm.outcome",
    "Machine": "memvirt.machine.machine",
    "MemvirtError": "memvirt.errors",
    "Outcome": "memvirt.vm.outcome",
    "PagingMode": "memvirt.vmm.monitor",
    "VirtualMachine": "memvirt.vm.virtual_machine",
}

__all__ = [
    "BootError",
    "EndReason",
    "Machine",
    "MemvirtError",
    "Outcome",
    "PagingMode",
    "VirtualMachine",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import ``name``, the first time it is asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
