# SPDX-License-Identifier: Apache-2.0
"""The options of a machine with one VM, as several commands have them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Paging(StrEnum):
    """The paging modes a user can choose."""

    shadow = "shadow"
    nested = "nested"
    flat = "flat"


Memory = Annotated[str, typer.Option(help="guest-physical memory of the VM")]
MachineMemory = Annotated[
    str | None,
    typer.Option(help="machine memory of the host; without it 256M, or as much as the VM may need"),
]
PagingOption = Annotated[
    Paging, typer.Option(help="shadow or nested page tables; flat: no virtualization, to compare")
]
Append = Annotated[str, typer.Option(help="kernel command line")]
Initrd = Annotated[Path | None, typer.Option(help="initial RAM disk")]
