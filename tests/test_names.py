# SPDX-License-Identifier: Apache-2.0
"""A name that stands for nothing is one clear error with the names there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memvirt import Machine, PagingMode, VirtualMachine
from memvirt.cpu.unicorn.processor import SegmentState
from memvirt.names import UnknownName, choose
from memvirt.vm.virtual_machine import paging_mode
from memvirt.vmm.stores.compression_cache import CompressionCache

_SEGMENT = SegmentState(0, 0, 0, 0)
_WRONG: dict[str, tuple[Callable[[VirtualMachine], object], str]] = {
    "register": (lambda vm: vm.processor.get("eip"), "no register 'eip'; did you mean rip"),
    "register-set": (
        lambda vm: vm.processor.set("cr8", 0),
        "no register 'cr8'; .*rip, rflags, cr0",
    ),
    "segment": (lambda vm: vm.processor.segment("xs"), "no segment register 'xs'; .*cs.*gdtr"),
    "segment-set": (lambda vm: vm.processor.set_segment("xs", _SEGMENT), "no segment register"),
    "protocol": (
        lambda vm: vm.load(b"\xf4", protocol="pxe"),
        "no boot protocol 'pxe'; there are: auto, linux, elf, multiboot, flat",
    ),
}


@pytest.fixture(scope="module")
def vm() -> VirtualMachine:
    return VirtualMachine(Machine("64M"), memory="16M")


@pytest.mark.parametrize("what", _WRONG)
def test_unknown_names(what: str, vm: VirtualMachine) -> None:
    use, message = _WRONG[what]
    with pytest.raises(UnknownName, match=message):
        use(vm)


@pytest.mark.parametrize("paging", ["fast", "", "neste", None, 7, "nested "])
def test_a_paging_mode_there_is_not(paging: str) -> None:
    machine = Machine("64M")
    with pytest.raises(UnknownName, match=r"no paging mode .*there are: shadow, nested, flat"):
        VirtualMachine(machine, memory="16M", paging=paging)
    assert machine.free_frames == machine.frames


def test_names_are_taken_in_any_case() -> None:
    assert paging_mode("Nested") is paging_mode(PagingMode.NESTED) is PagingMode.NESTED


def test_what_is_chosen() -> None:
    assert choose({"one": 1}, "one", what="number") == 1
    with pytest.raises(UnknownName, match="no number 'two'; there are: one"):
        choose({"one": 1}, "two", what="number")


def test_a_codec_there_is_not() -> None:
    machine = Machine("64M")
    with pytest.raises(UnknownName, match="no codec 'gzip'; there are: lz4, zstd"):
        CompressionCache(machine, 1, 16, codec="gzip")  # type: ignore[arg-type]
    assert machine.free_frames == machine.frames
