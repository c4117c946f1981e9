# SPDX-License-Identifier: Apache-2.0
"""memvirt: memory virtualization as a hypervisor does it, running real x86-64 guests."""

from memvirt.platform.boot.image import BootError
from memvirt.virtual_machine import EndReason, Machine, Outcome, VirtualMachine
from memvirt.vmm.monitor import PagingMode

__version__ = "0.1.0"

__all__ = [
    "BootError",
    "EndReason",
    "Machine",
    "Outcome",
    "PagingMode",
    "VirtualMachine",
    "__version__",
]
