# SPDX-License-Identifier: Apache-2.0
"""What a frame of machine memory is used for."""

from __future__ import annotations

from enum import IntEnum

NOBODY = -1  # the owner of frames that belong to no VM


class FrameKind(IntEnum):
    """What a frame is used for. Its owner is a VM, or ``NOBODY`` for frames shared by VMs.

    Each kind keeps one number a frame, in the same word (``MachineMemory``: ``guest_ppn`` and the
    names beside it); in that of a FREE frame is the next one (``free_list``).
    """

    FREE = 0
    GUEST = 1  # backs one PPN of its owner: ``guest_ppn``
    SHARED = 2  # backs several PPNs, copy-on-write: ``share_salt`` of their VMs
    SHADOW = 3  # a shadow page table: ``shadow_index`` in the VMM
    NESTED = 4  # a nested page table: its ``table_level``
    RESERVE = 5  # zeroed, owned by a VM, not used yet
    VMKERNEL = 6  # the host's own
    COMPRESSED = 7  # holds compressed pages of its owner, in blocks of ``block_bytes``
