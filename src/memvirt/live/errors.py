# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a VM that is not ours. Every message is one line for the user."""

from __future__ import annotations

from memvirt.errors import MemvirtError


class LiveError(MemvirtError):
    """Something about a live VM; the message names the VM, process or file and what would help."""


class VmNotFound(LiveError):
    """No VM, or more than one, goes by this name."""


class ProcessGone(LiveError):
    """The QEMU process ended; what was read of it in the same step is void."""


class AccessDenied(LiveError):
    """The kernel refuses to show the process or its pages; the message says what is needed."""


class KernelFeatureMissing(LiveError):
    """This kernel lacks what was asked for; the message names the feature."""


class LayoutError(LiveError):
    """QEMU's account of the guest's RAM cannot be understood, or disagrees with the kernel's."""


class MonitorError(LiveError):
    """The QMP monitor cannot be used; the message names the VM and the socket."""


class MonitorBusy(MonitorError):
    """Another client holds the monitor: QEMU serves one at a time on each socket."""


class MonitorTimeout(MonitorError):
    """No answer in time. The connection is closed: a late answer would be taken for another's."""


class CommandError(MonitorError):
    """QEMU refused a command. ``error_class`` is QMP's, such as "DeviceNotActive"."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class
