# SPDX-License-Identifier: Apache-2.0
"""Control groups with a memory controller, version 2 or 1: limit, use, protection, members.

Sources: Linux Documentation, admin-guide/cgroup-v2.rst ("Memory Interface Files") and
admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memvirt.address import PAGE_BYTES
from memvirt.live.errors import KernelFeatureMissing

ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 has no word for it, but a number near 2^63


class MemoryCgroup:
    """One control group, by its path below the controller's root ("machine.slice/vm.scope").

    Raises KernelFeatureMissing if there is none with a memory controller.
    """

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.name = name.strip("/")
        self._root = root
        unified, legacy = root / self.name, root / "memory" / self.name
        if (unified / "memory.current").exists():
            self.version, self.directory = 2, unified
        elif (legacy / "memory.usage_in_bytes").exists():
            self.version, self.directory = 1, legacy
        else:
            raise KernelFeatureMissing(
                f"control group {name}: neither {unified}/memory.current nor "
                f"{legacy}/memory.usage_in_bytes exists"
            )

    def _bytes(self, name: str) -> int:
        text = (self.directory / name).read_text().strip()
        return _UNLIMITED if text == "max" else int(text)

    @property
    def limit_file(self) -> Path:
        """The file with its hard limit, in bytes."""
        return self.directory / ("memory.max" if self.version == 2 else "memory.limit_in_bytes")

    @property
    def oom_control(self) -> Path:
        """Version 1: the file that switches its OOM killer off."""
        return self.directory / "memory.oom_control"

    @property
    def limit(self) -> int | None:
        """Pages it may use; None if it is not limited."""
        value = self._bytes(self.limit_file.name)
        return None if value >= _UNLIMITED else value // PAGE_BYTES

    @property
    def used_bytes(self) -> int:
        """Bytes charged to it, page cache included. Raises OSError."""
        return self._bytes("memory.current" if self.version == 2 else "memory.usage_in_bytes")

    def room(self) -> int | None:
        """Pages left under the limit, with the page cache that is not in active use."""
        limit = self.limit
        if limit is None:
            return None
        key = "inactive_file" if self.version == 2 else "total_inactive_file"
        cache = 0
        for line in (self.directory / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                cache = int(value)
        return limit - (self.used_bytes - cache) // PAGE_BYTES

    @property
    def protection(self) -> Path:
        """The file that tells the kernel how much of it to spare when memory is short."""
        return self.directory / (
            "memory.low" if self.version == 2 else "memory.soft_limit_in_bytes"
        )

    def bounding_protections(self) -> Iterator[Path]:
        """The files of the groups above that bound what ``protection`` is worth (version 2)."""
        if self.version == 2:
            for directory in self.directory.parents:
                if directory == self._root or not directory.is_relative_to(self._root):
                    return
                if (directory / "memory.low").exists():
                    yield directory / "memory.low"

    @property
    def reclaim(self) -> Path | None:
        """The file by which the kernel is told to reclaim from it; None if it has none."""
        file = self.directory / "memory.reclaim"
        return file if self.version == 2 and file.exists() else None

    def processes(self) -> set[int]:
        """Process numbers of it and of the groups below it. Raises OSError if it has gone."""
        found: set[int] = set()
        for file in (self.directory / "cgroup.procs", *self.directory.rglob("*/cgroup.procs")):
            try:
                found.update(map(int, file.read_text().split()))
            except OSError:
                # A group of threads cannot be read: its processes are told by the one above. One
                # below may go at any time.
                if file.parent == self.directory:
                    raise
        return found


def find_group(name: str, root: Path = ROOT) -> tuple[MemoryCgroup | None, str]:
    """A VM's control group, or why it has none although there is a name; None, "" without one."""
    if not name:
        return None, ""
    try:
        return MemoryCgroup(name, root), ""
    except KernelFeatureMissing as error:
        return None, f"its reservation is not known to the kernel: {error}"
