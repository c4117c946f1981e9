# SPDX-License-Identifier: Apache-2.0
"""The backing stores a VM gets, by the names of the mechanisms that keep pages in them.

A mechanism of one's own that keeps pages (``vmkernel.mechanisms.KeepIn``) registers here how its
store is made, under the name of its place::

    from memvirt.host.stores import STORES

    STORES.register("far", lambda request: FarMemory(request.machine))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memvirt.machine.memory import MachineMemory
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.registry import Registry
from memvirt.vmm.stores.backing import BackingStore
from memvirt.vmm.stores.compression_cache import Codec, CompressionCache
from memvirt.vmm.stores.swap_file import SwapFile, WriteBuffers


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a store for one VM may be made of."""

    machine: MachineMemory
    vm_id: int
    settings: VmSettings
    options: MemoryOptions
    cache_max: int  # frames the VM's compression cache may take
    swap_path: Path
    buffers: WriteBuffers


def _swap_file(request: StoreRequest) -> SwapFile:
    wait_ns = int(request.options.swap_read_us * 1000)
    slots = request.settings.swap
    return SwapFile(request.swap_path, slots, request.buffers, wait_ns=wait_ns)


def _compression_cache(request: StoreRequest) -> CompressionCache | None:
    if not request.cache_max:
        return None
    return CompressionCache(
        request.machine,
        request.vm_id,
        request.cache_max,
        codec=Codec(request.options.mem_zip_codec),
        wait_ns=int(request.options.unzip_us * 1000),
    )


# A factory gets a StoreRequest, and returns None if this VM has no such store.
STORES: Registry[BackingStore | None] = Registry("backing store")
STORES.register("compress", _compression_cache)
STORES.register("swap", _swap_file)


def make_stores(request: StoreRequest, names: Sequence[str]) -> dict[str, BackingStore]:
    """The stores a VM gets, by name: those of ``names`` that have one.

    Raises SwapSpaceError, and what factories from outside raise; what was made until then with a
    ``close`` is closed.
    """
    made: dict[str, BackingStore] = {}
    try:
        for name in names:
            if name in STORES.names():
                store = STORES.make(name, request)
                if store is not None:
                    made[name] = store
    except BaseException:
        close_stores(made)
        raise
    return made


def close_stores(stores: dict[str, BackingStore]) -> None:
    """Close all stores that have a ``close``: files and connections go."""
    for store in stores.values():
        close = getattr(store, "close", None)
        if close is not None:
            close()
