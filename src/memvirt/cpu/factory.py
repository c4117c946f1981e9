# SPDX-License-Identifier: Apache-2.0
"""The processor a VM gets if nobody chooses another."""

from __future__ import annotations

from typing import Any

from memvirt.vmm.monitor import VirtualMachineMonitor

from .processor import Processor
from .unicorn.processor import UnicornProcessor


def software_processor(vmm: VirtualMachineMonitor, pc: Any) -> Processor:
    """The embedded software processor: real x86-64 code, no privileges needed.

    Raises ProcessorError or EngineLayoutError where the installed engine cannot be used.
    """
    return UnicornProcessor(vmm, pc)
