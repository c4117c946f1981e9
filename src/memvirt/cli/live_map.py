# SPDX-License-Identifier: Apache-2.0
"""``memvirt map --vm``: an address of a live VM, a range of them, or a frame of the host."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from memvirt.address import (
    PAGE_SHIFT,
    GuestPhysicalAddress,
    GuestVirtualAddress,
    MachinePageNumber,
    guest_physical_address,
)
from memvirt.live.address_map import (
    MappedRange,
    frame_behind,
    map_guest_physical,
    map_live_address,
    map_range,
    render_live_map,
)
from memvirt.live.discovery import find_vm
from memvirt.live.kernel_pages import KernelPages
from memvirt.live.reverse_map import gvas_of_ppn, ppns_of_frame
from memvirt.live.vm import LiveVm, open_kernel_pages
from memvirt.live.walk import GuestWalker

from .errors import UsageError

_MOST_RANGES = 1000
_MOST_GVAS = 64


@dataclass(frozen=True, slots=True)
class LiveMapOptions:
    """What to map: ``what`` is an address, FIRST-LAST or FIRST+BYTES."""

    vm: str
    what: str
    physical: bool = False
    frame: bool = False
    cpu: int = 0
    cr3: int | None = None
    as_json: bool = False


def _number(text: str, what: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise UsageError(f"{text} is no {what}; write for instance 0x100000")
    return number


def parse_range(text: str) -> tuple[int, int | None]:
    """First address and the one behind the last, or None for a single address.

    Raises UsageError.
    """
    for sign in "-+":
        first_text, found, rest = text.partition(sign)
        if found and first_text:
            first, number = _number(first_text, "address"), _number(rest, "address")
            end = number + 1 if sign == "-" else first + number
            if end <= first or end > 1 << 64:
                raise UsageError(f"{text}: the range is empty or too long")
            return first, end
    return _number(text, "address"), None


def live_map(options: LiveMapOptions) -> int:
    """Print the map; exit status 0. Raises LiveError, UsageError."""
    if options.frame and options.physical:
        raise UsageError("--frame and --physical exclude each other")
    first, end = parse_range(options.what)
    if end is not None and (options.frame or options.physical):
        raise UsageError(
            "a range is of guest virtual addresses; it cannot be --frame or --physical"
        )
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(LiveVm(find_vm(options.vm)))
        kernel, problem = open_kernel_pages()
        if kernel is not None:
            stack.enter_context(kernel)
        if options.physical:
            result = map_guest_physical(vm, GuestPhysicalAddress(first), kernel)
            print(_text(result.as_json()) if options.as_json else render_live_map(result))
            return 0
        walker = GuestWalker(vm, vm.registers(options.cpu), cr3=options.cr3)
        try:
            if options.frame:
                _print_frame(vm, walker, MachinePageNumber(first), kernel, problem, options.as_json)
            elif end is None:
                one = map_live_address(vm, walker, GuestVirtualAddress(first), kernel)
                print(_text(one.as_json()) if options.as_json else render_live_map(one))
            else:
                _print_range(
                    map_range(
                        vm, walker, GuestVirtualAddress(first), GuestVirtualAddress(end), kernel
                    ),
                    options.as_json,
                )
        except ValueError as error:
            raise UsageError(str(error)) from error
    return 0


def _text(value: object) -> str:
    return json.dumps(value, indent=2)


def _print_range(ranges: Iterator[MappedRange], as_json: bool) -> None:
    shown = list(itertools.islice(ranges, _MOST_RANGES + 1))
    more = len(shown) > _MOST_RANGES
    shown = shown[:_MOST_RANGES]
    if as_json:
        rows = [
            asdict(item)
            | {"gva": hex(item.gva), "gpa": None if item.gpa is None else hex(item.gpa)}
            for item in shown
        ]
        print(_text({"ranges": rows, "complete": not more}))
        return
    for item in shown:
        line = f"{item.gva:#018x} - {item.gva + item.bytes - 1:#018x} {item.bytes >> 10:>10} KiB"
        if item.gpa is None:
            print(f"{line}  not mapped")
            continue
        states = ", ".join(f"{count} {state}" for state, count in item.states.items())
        print(
            f"{line}  gPA {item.gpa:#014x}  {item.page_bytes >> 10} KiB  {item.rights:<4}  {states}"
        )
    if more:
        last = shown[-1]
        print(f"... more; go on from {last.gva + last.bytes:#x}")


def _print_frame(
    vm: LiveVm,
    walker: GuestWalker,
    mpn: MachinePageNumber,
    kernel: KernelPages | None,
    problem: str,
    as_json: bool,
) -> None:
    if kernel is None:
        raise UsageError(f"--frame: {problem}")
    found = []
    for ppn in ppns_of_frame(vm, mpn):
        mappings = list(itertools.islice(gvas_of_ppn(vm, walker, ppn), _MOST_GVAS))
        found.append((ppn, mappings))
    if as_json:
        print(
            _text(
                [
                    {
                        "ppn": hex(ppn),
                        "gpa": hex(ppn << PAGE_SHIFT),
                        "gvas": [hex(mapping.gva) for mapping in mappings],
                    }
                    for ppn, mappings in found
                ]
            )
        )
        return
    if not found:
        print(f"{vm.name}: MPN {mpn:#x} is none of its pages now")
    for ppn, mappings in found:
        frame = frame_behind(vm, guest_physical_address(ppn), kernel)
        state = "" if frame is None else f"  {frame.state}; {', '.join(frame.flags or ())}"
        print(f"{vm.name}: MPN {mpn:#x} is PPN {ppn:#x}, gPA {ppn << PAGE_SHIFT:#x}{state}")
        for mapping in mappings:
            print(f"  gVA {mapping.gva:#018x}  page {mapping.page_bytes >> 10} KiB")
        if not mappings:
            print(f"  no gVA maps it in the address space of CR3 {walker.cr3:#x}")
