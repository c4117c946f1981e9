# SPDX-License-Identifier: Apache-2.0
"""Images in conventional memory run, and find their command line."""

from __future__ import annotations

import pytest

from memvirt import EndReason, Machine, VirtualMachine
from tests.platform.images import multiboot_flat
from tests.small_guest import PAGING_MODES

# mov 16(%ebx), %esi; mov (%esi), %al; out %al, $0xf4: ends with the command line's first character.
_CODE = bytes.fromhex("8b7310 8a06 e6f4 f4")


@pytest.mark.parametrize("paging", PAGING_MODES)
@pytest.mark.parametrize("base", [0x1000, 0x7000, 0x10000, 0x1F000, 0x80000])
def test_an_image_below_1_mib(base: int, paging: str) -> None:
    image = multiboot_flat(base=base, entry=base + 96, code=_CODE, bss_end=base + 0x8000)
    scatter = None if paging == "flat" else 3
    with VirtualMachine(Machine("32M", scatter_seed=scatter), memory="16M", paging=paging) as vm:
        vm.load(image, append="\x10")
        assert vm.run(timeout=60).reason is EndReason.SUCCESS
