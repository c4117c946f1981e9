# SPDX-License-Identifier: Apache-2.0
"""States of a live VM's pages, against what the guest and the kernel are known to have done."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from memvirt.address import HostVirtualAddress
from memvirt.live.content import GuestContent
from memvirt.live.errors import ProcessGone
from memvirt.live.forecast import hash_vm
from memvirt.live.kernel_pages import PAGEMAP_FRAME, Pagemap
from memvirt.live.page_states import LivePageState, has_pager, read_page_states
from memvirt.live.process import Process
from memvirt.live.ram import Backing, RamBlock, RamLayout
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.machine.content import hash_pages

from .conftest import Qemu

PAGES = 64


@contextmanager
def own_memory(shared: bool) -> Iterator[tuple[mmap.mmap, RamLayout, int]]:
    """A piece of this process's memory, dressed as a VM's RAM block."""
    descriptor = os.memfd_create("ram") if shared else -1
    if shared:
        os.ftruncate(descriptor, PAGES * 4096)
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(descriptor, PAGES * 4096, flags)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = np.frombuffer(memory, np.uint8)
    address = int(view.ctypes.data)
    del view
    backing = Backing.MEMFD if shared else Backing.ANONYMOUS
    block = RamBlock(
        "ram", HostVirtualAddress(address), PAGES * 4096, 0, backing, shared, True, "", 0, 0, ""
    )
    try:
        yield memory, RamLayout((block,), ()), descriptor
    finally:
        memory.close()
        if shared:
            os.close(descriptor)


def states_of(layout: RamLayout, *, kernel: bool = True) -> Any:
    pages = open_kernel_pages()[0] if kernel else None
    with Process(os.getpid()) as process, Pagemap(process) as pagemap:
        try:
            return read_page_states(process, layout, pagemap, pages)
        finally:
            if pages is not None:
                pages.close()


def test_private_memory_written_read_and_untouched() -> None:
    with own_memory(shared=False) as (memory, layout, _):
        for page in range(0, 16):
            memory[page * 4096] = 1
        for page in range(16, 24):
            assert memory[page * 4096] == 0  # a read maps the host's page of zeroes
        states = states_of(layout)
        if not states.frames_known:
            pytest.skip("needs root to see frames")
        assert (states.state[:16] == LivePageState.PRIVATE).all()
        assert (states.state[16:24] == LivePageState.ZERO).all()
        assert (states.state[24:] == LivePageState.UNTOUCHED).all()
        counts = states.counts()
        assert (counts.granted, counts.zero, counts.untouched) == (16, 8, PAGES - 24)
        assert counts.consumed == 16
        again = states_of(layout)
        assert (again.state == states.state).all()  # looking has touched nothing


def test_without_frames_sharing_is_unknown_not_zero() -> None:
    with own_memory(shared=False) as (memory, layout, _):
        memory[0] = 1
        states = states_of(layout, kernel=False)
        counts = states.counts()
        assert counts.untouched == PAGES - 1
        if LivePageState.UNKNOWN in states.state:
            assert counts.shared is None
            assert counts.granted is None


def test_shared_memory_that_is_not_mapped_is_found_in_its_file() -> None:
    with own_memory(shared=True) as (memory, layout, descriptor):
        os.pwrite(descriptor, b"x" * 4096 * 4, 8 * 4096)  # in the file, mapped by nobody
        memory[0] = 1
        states = states_of(layout)
        assert states.state[0] == LivePageState.PRIVATE
        assert (states.state[8:12] == LivePageState.PRIVATE).all()
        assert (states.state[12:] == LivePageState.UNTOUCHED).all()
        assert states.counts().granted == 5


@pytest.mark.parametrize("shared", [False, True])
def test_content_is_what_was_written(shared: bool) -> None:
    with own_memory(shared) as (memory, layout, _):
        chosen = np.array([1, 2, 3, 10, 20, 21, 63])
        for page in chosen:
            memory[page * 4096 : page * 4096 + 4096] = bytes([page]) * 4096
        out = np.zeros(chosen.size * 4096, np.uint8)
        with Process(os.getpid()) as process, GuestContent(process, layout) as content:
            content.read(chosen, out)
        assert (out.reshape(-1, 4096) == chosen[:, None]).all()


def _qemu_rss(pid: int) -> int:
    with Process(pid) as process:
        fields = process.read("statm").split()
    return int(fields[1])


@pytest.mark.qemu
@pytest.mark.parametrize("fixture", ["anonymous_vm", "memfd_vm"])
def test_watching_a_guest_touches_nothing(
    host_state: None, fixture: str, request: pytest.FixtureRequest
) -> None:
    """Nobody's test of KSM runs meanwhile: it would merge pages of the guest."""
    qemu: Qemu = request.getfixturevalue(fixture)
    kernel, _ = open_kernel_pages()
    with qemu.open() as vm:
        vm.ask().execute("stop")
        try:
            before, rss = vm.page_states(kernel), _qemu_rss(vm.pid)
            hashed = hash_vm(vm, kernel)
            after = vm.page_states(kernel)
            assert (after.state == before.state).all()
            assert abs(_qemu_rss(vm.pid) - rss) < 500  # QEMU's own; far less than was read
            assert hashed.hashes.size == before.where(LivePageState.PRIVATE).size
            assert before.where(LivePageState.UNTOUCHED).size > 1000
        finally:
            vm.ask().execute("cont")


@pytest.mark.qemu
def test_what_a_guest_writes_becomes_granted(memfd_vm: Qemu) -> None:
    """By its content: whether the guest takes pages it had before is its own affair."""
    (wanted,) = hash_pages(np.full(4096, ord("w"), np.uint8), np.zeros(1, np.int64))

    def found(vm: LiveVm) -> int:
        return int(np.count_nonzero(hash_vm(vm, None).hashes == wanted))

    with memfd_vm.open() as vm:
        assert found(vm) == 0
        memfd_vm.console.run(
            "dd if=/dev/zero bs=1M count=12 2>/dev/null | tr '\\000' w > /tmp/block"
        )
        assert found(vm) >= 12 << 8
        granted = vm.page_states(None).counts().granted
        assert granted is not None
        assert granted >= 12 << 8
        memfd_vm.console.run("rm /tmp/block")


@pytest.mark.qemu
def test_a_process_that_ends_in_the_middle(paging_guest: Any) -> None:
    qemu: Qemu = paging_guest("n")
    with qemu.open() as vm:
        indices = vm.page_states(None).where(LivePageState.PRIVATE)
        entries = vm.pagemap.entries(vm.layout.blocks[0].host_address, 4)
        assert (entries & PAGEMAP_FRAME).any() or os.geteuid() != 0
        qemu.process.kill()
        qemu.process.wait()
        out = np.zeros(indices.size * 4096, np.uint8)
        for attempt in (
            lambda: vm.page_states(None),
            lambda: vm.content.read(indices, out),
            lambda: vm.process.read("status"),
            lambda: _ask(vm),
        ):
            with pytest.raises(ProcessGone, match=f"process {qemu.pid} is gone"):
                attempt()


def _ask(vm: LiveVm) -> None:
    vm.release_monitor()
    vm.ask()


@pytest.mark.qemu
def test_memory_without_a_pager(memfd_vm: Qemu) -> None:
    with memfd_vm.open() as vm:
        assert not vm.has_pager(0)


@pytest.mark.parametrize("shared", [False, True])
def test_memory_with_a_pager_is_read_through_it(shared: bool) -> None:
    """A page that is missing is brought by whoever holds the userfaultfd, here a thread."""
    with own_memory(shared) as (memory, layout, _), Process(os.getpid()) as process:
        block = layout.blocks[0]
        assert not has_pager(process, block)
        try:
            pager = Pager(block.host_address, block.bytes)
        except OSError as error:
            pytest.skip(f"userfaultfd: {error}")
        with pager:
            assert has_pager(process, block)
            out = np.zeros(4096, np.uint8)
            with GuestContent(process, layout) as content:
                content.read_through_process(5, out)
            assert (out == 7).all()
            assert memory[5 * 4096] == 7


class Pager:
    """A userfaultfd over a run of this process's memory; pages it brings are all sevens.

    ioctls and structures: include/uapi/linux/userfaultfd.h.
    """

    def __init__(self, address: int, size: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.syscall(323, os.O_CLOEXEC)  # userfaultfd
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        fcntl.ioctl(self._descriptor, 0xC018AA3F, bytearray(struct.pack("<3Q", 0xAA, 0, 0)))
        register = bytearray(struct.pack("<4Q", address, size, 1, 0))
        fcntl.ioctl(self._descriptor, 0xC020AA00, register)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        message = os.read(self._descriptor, 32)
        (fault,) = struct.unpack_from("<Q", message, 16)
        page = ctypes.create_string_buffer(b"\x07" * 4096, 4096)
        copy = struct.pack("<5Q", fault & ~0xFFF, ctypes.addressof(page), 4096, 0, 0)
        fcntl.ioctl(self._descriptor, 0xC028AA03, bytearray(copy))

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self._thread.join(60)
        os.close(self._descriptor)
