# SPDX-License-Identifier: Apache-2.0
"""What a scenario says of a VM, in the VMkernel's terms."""

from __future__ import annotations

from memvirt.address import PAGE_BYTES
from memvirt.vmkernel.admission import VmSettings

from .keys import VmOptions, shares_of


def vm_settings(options: VmOptions, name: str) -> VmSettings:
    """The settings, in pages, of ``name``: one of the ``count`` VMs that ``options`` describes."""
    return VmSettings(
        name=name,
        memory=options.memory // PAGE_BYTES,
        shares=shares_of(options),
        reservation=options.reservation // PAGE_BYTES,
        limit=None if options.limit is None else options.limit // PAGE_BYTES,
        group=options.group,
    )
