# SPDX-License-Identifier: Apache-2.0
"""The firmware configuration device of QEMU (QEMU documentation, docs/specs/fw_cfg.rst).

A guest writes a key to port 0x510 as a word and reads the item's bytes, one after the other, from
port 0x511; past its end, and for a key without an item, it reads zeroes. There is no DMA interface,
and writes to items are ignored, as since QEMU 2.4. What the items hold is ``boot/fw_cfg_items.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from typing import Annotated, Any

import numpy as np

from memvirt.compiled import compiled
from memvirt.mmu.host_ranges import host_address
from memvirt.mmu.native import load8
from memvirt.state_record import Record, record_dtype

PORT_FW_CFG_SELECT = 0x510
PORT_FW_CFG_DATA = 0x511
_KEYS = 0x40  # generic keys from 0 on
_ARCHITECTURE = 0x8000  # keys of this architecture from here on
_ARCHITECTURE_KEYS = 0x10
_SLOTS = _KEYS + _ARCHITECTURE_KEYS

ItemBytes = np.ndarray[Any, np.dtype[np.uint8]]


class FwCfgState(Record):
    """State record; see the module docstring."""

    selected: int  # slot, or -1
    offset: int  # of the next byte
    item_at: Annotated[MutableSequence[int], np.int64, _SLOTS]
    item_bytes: Annotated[MutableSequence[int], np.int64, _SLOTS]


FW_CFG_DTYPE = record_dtype(FwCfgState)


@compiled
def _slot(key: int) -> int:
    if 0 <= key < _KEYS:
        return key
    if _ARCHITECTURE <= key < _ARCHITECTURE + _ARCHITECTURE_KEYS:
        return key - _ARCHITECTURE + _KEYS
    return -1


def fw_cfg_configure(state: FwCfgState, items: Mapping[int, bytes]) -> list[ItemBytes]:
    """Offer ``items`` by their keys, and no others.

    Obligation: the caller keeps what is returned for as long as the guest runs; the device reads
    from it. Raises ValueError for a key outside the device's range.
    """
    for slot in range(_SLOTS):
        state.item_at[slot] = state.item_bytes[slot] = 0
    kept = []
    for key, data in items.items():
        slot = int(_slot(key))
        if slot < 0:
            raise ValueError(f"fw_cfg has no key {key:#x}")
        if data:
            kept.append(np.frombuffer(data, np.uint8))
            state.item_at[slot] = host_address(kept[-1], f"fw_cfg item {key:#x}")
            state.item_bytes[slot] = len(data)
    state.selected = state.offset = 0
    return kept


@compiled
def fw_cfg_select(state: FwCfgState, key: int) -> None:
    """Write the selector: the next read is the item's first byte. Bit 14 asks for a write."""
    state.selected = _slot(key & 0xBFFF)
    state.offset = 0


@compiled
def fw_cfg_read(state: FwCfgState) -> int:
    """The next byte of the selected item."""
    slot = state.selected
    if slot < 0 or state.offset >= state.item_bytes[slot]:
        return 0
    value = load8(state.item_at[slot] + state.offset)
    state.offset += 1
    return value & 0xFF
