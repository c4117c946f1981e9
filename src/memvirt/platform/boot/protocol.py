# SPDX-License-Identifier: Apache-2.0
"""The names of the boot protocols."""

from __future__ import annotations

from enum import Enum

from memvirt.names import choose


class Protocol(Enum):
    """How to start an image. ``AUTO`` recognises every protocol but ``FLAT``."""

    AUTO = "auto"
    LINUX = "linux"
    ELF = "elf"
    MULTIBOOT = "multiboot"
    FLAT = "flat"


def boot_protocol(protocol: Protocol | str) -> Protocol:
    """A protocol, or the one of that value in any case. Raises UnknownName."""
    if isinstance(protocol, Protocol):
        return protocol
    names = {known.value: known for known in Protocol}
    return choose(names, str(protocol).lower(), what="boot protocol")
