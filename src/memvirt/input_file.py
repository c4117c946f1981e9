# SPDX-License-Identifier: Apache-2.0
"""Files that memvirt reads for its user: regular files of bounded size, or refused in one line.

A pipe may never come to its end, a device has none, and what is larger than anything of its kind
would fill the host's memory before it could be refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from memvirt.errors import MemvirtError
from memvirt.notebook import one_line
from memvirt.size import format_size

TEXT_BYTES = 64 << 20
"""More than any scenario or answer to a question has."""
IMAGE_BYTES = 4 << 30
"""More than any guest's memory."""


class InputFileError(MemvirtError):
    """A file that cannot be read; the message names it and says why."""


def check_input(path: str | Path, *, most: int) -> None:
    """Raise InputFileError unless ``path`` is a regular file of at most ``most`` bytes."""
    shown = one_line(str(path))
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL, a lone surrogate
        raise InputFileError(f"{shown}: no file can have this name ({error})") from error
    except OSError as error:
        raise InputFileError(f"{shown}: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputFileError(f"{shown}: is a directory; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputFileError(f"{shown}: not a regular file; copy what it gives to one")
    if status.st_size > most:
        raise InputFileError(
            f"{shown}: has {format_size(status.st_size)}; at most {format_size(most)} are read"
        )


def read_input(path: str | Path, *, most: int) -> bytes:
    """Content of a regular file of at most ``most`` bytes. Raises InputFileError."""
    check_input(path, most=most)
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)  # it may have grown, or be one of /proc
    except OSError as error:
        raise InputFileError(f"{one_line(str(path))}: {error.strerror or error}") from error
    if len(data) > most:
        raise InputFileError(f"{one_line(str(path))}: has more than {format_size(most)}")
    return data


def read_input_text(path: str | Path, *, most: int = TEXT_BYTES) -> str:
    """Content of a UTF-8 text file, without its byte order mark. Raises InputFileError."""
    try:
        return read_input(path, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(
            f"{one_line(str(path))}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
