# SPDX-License-Identifier: Apache-2.0
"""VMCOREINFO: the text in which a Linux kernel tells debuggers where its data structures are.

Source: Linux, Documentation/admin-guide/kdump/vmcoreinfo.rst. Each line is a name, ``=`` and a
value: ``SYMBOL(x)`` an address in hexadecimal digits, ``SIZE(x)``, ``OFFSET(x.y)``, ``LENGTH(x)``
and ``NUMBER(x)`` decimal numbers. The kernel keeps the text in a page of its own that begins with
its release; QEMU (with ``-device vmcoreinfo``) and kdump put it into their dumps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memvirt.address import GuestVirtualAddress
from memvirt.plan.dumps.dump import Pages

BEGINNING = b"OSRELEASE="
_RELEASE = re.compile(rb"OSRELEASE=([\x21-\x7e]{1,64})\n")
_LINE = re.compile(
    rb"^(?:(SYMBOL)\((\w{1,64})\)=([0-9a-f]{1,16})|"
    rb"((?:SIZE|OFFSET|LENGTH|NUMBER)\([\w.]{1,96}\))=(-?[0-9]{1,20}))$",
    re.MULTILINE,
)


class KernelUnreadable(Exception):
    """Why nothing can be said about the guest's kernel; a part of a sentence for the user."""


@dataclass(frozen=True)
class VmCoreInfo:
    """What one kernel tells. ``numbers``: by their full name, ``"SIZE(page)"``."""

    release: str
    symbols: Mapping[str, GuestVirtualAddress]
    numbers: Mapping[str, int]

    def symbol(self, name: str) -> GuestVirtualAddress:
        """Raises KernelUnreadable."""
        if name not in self.symbols:
            raise KernelUnreadable(f"the VMCOREINFO of Linux {self.release} has no SYMBOL({name})")
        return self.symbols[name]

    def number(self, name: str, low: int, high: int) -> int:
        """A number that must be there and from ``low`` to ``high``. Raises KernelUnreadable."""
        if name not in self.numbers:
            raise KernelUnreadable(f"the VMCOREINFO of Linux {self.release} has no {name}")
        value = self.numbers[name]
        if not low <= value <= high:
            raise KernelUnreadable(
                f"the VMCOREINFO of Linux {self.release} says {name}={value}, which cannot be"
            )
        return value


def parse_vmcoreinfo(text: bytes) -> VmCoreInfo | None:
    """What the text says; None if it is no VMCOREINFO. Lines of other kinds are passed over."""
    release = _RELEASE.match(text)
    if release is None:
        return None
    symbols: dict[str, GuestVirtualAddress] = {}
    numbers: dict[str, int] = {}
    for match in _LINE.finditer(text.split(b"\0", 1)[0]):
        if match[1]:
            symbols[match[2].decode()] = GuestVirtualAddress(int(match[3], 16))
        else:
            numbers[match[4].decode()] = int(match[5])
    return VmCoreInfo(release[1].decode(), symbols, numbers)


def kernel_texts(content: Pages) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of those pages that begin as a kernel's VMCOREINFO does."""
    words = content[:, :8].copy().view(np.uint64)[:, 0]
    rows = np.flatnonzero(words == np.frombuffer(BEGINNING[:8], np.uint64)[0])
    return rows[(content[rows, 8:10] == np.frombuffer(BEGINNING[8:], np.uint8)).all(axis=1)]
