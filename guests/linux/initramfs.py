#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write an initramfs: a cpio archive ("newc" format, Linux Documentation, initramfs buffer format).

usage: initramfs.py OUTPUT [PATH=FILE | PATH/ | PATH@TARGET] ...

PATH=FILE puts FILE at PATH (executable if FILE is), PATH/ makes a directory, PATH@TARGET a
symbolic link. Times, owners and inode numbers are fixed, so equal inputs give equal bytes.
"""

import os
import sys
from pathlib import Path

DIRECTORY, REGULAR, LINK, CHARACTER = 0o040755, 0o100644, 0o120777, 0o020600
CONSOLE = (5, 1)  # major and minor number of /dev/console


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class Archive:
    """The archive under construction."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [_padded(header + name), _padded(data)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    archive = Archive()
    archive.add("dev", DIRECTORY)
    archive.add("dev/console", CHARACTER, device=CONSOLE)
    for item in sys.argv[2:]:
        if item.endswith("/"):
            archive.add(item[:-1], DIRECTORY)
        elif "@" in item:
            path, target = item.split("@", 1)
            archive.add(path, LINK, target.encode())
        else:
            path, _, source = item.partition("=")
            mode = REGULAR | (0o111 if os.access(source, os.X_OK) else 0)
            archive.add(path, mode, Path(source).read_bytes())
    Path(sys.argv[1]).write_bytes(archive.finish())


if __name__ == "__main__":
    main()
