# SPDX-License-Identifier: Apache-2.0
"""memvirt: memory virtualization as a hypervisor does it, running real x86-64 guests."""

from memvirt.compiled_cache import use_compiled_cache

use_compiled_cache()

from memvirt.machine.machine import Machine  # noqa: E402
from memvirt.platform.boot.image import BootError  # noqa: E402
from memvirt.vm.outcome import EndReason, Outcome  # noqa: E402
from memvirt.vm.virtual_machine import VirtualMachine  # noqa: E402
from memvirt.vmm.monitor import PagingMode  # noqa: E402

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
