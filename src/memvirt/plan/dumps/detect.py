# SPDX-License-Identifier: Apache-2.0
"""Open a dump of any known format, by what it begins with."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

from memvirt.input_file import InputFileError, check_input

from .dump import Dump, DumpError
from .elf_core import open_elf_core
from .kdump import FLATTENED, SIGNATURE, KdumpDump
from .lime import MAGIC, open_lime
from .raw import open_raw
from .snapshot import open_snapshot

__all__ = ["open_dump"]

_MOST_BYTES = 1 << 60  # a dump is read page by page: it may be as large as it is


def open_dump(path: Path) -> Dump:
    """The dump, kept open for the tasks of this process. Raises DumpError."""
    try:
        check_input(path, most=_MOST_BYTES)
        about = path.stat()
    except InputFileError as error:
        raise DumpError(str(error)) from error
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror or error}") from error
    return _open(path, (about.st_ino, about.st_size, about.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _open(path: Path, state: tuple[int, int, int]) -> Dump:
    """Opened once for each state of the file: what lies under its name may change."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[:4] == b"\x7fELF":
            return open_elf_core(path)
        if start[:8] == SIGNATURE or start[:12] == FLATTENED:
            return KdumpDump(path)
        if start[:4] == struct.pack("<I", MAGIC):
            return open_lime(path)
        if start[:4] == b"PK\x03\x04":
            return open_snapshot(path)
        return open_raw(path)
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror or error}") from error
