# SPDX-License-Identifier: Apache-2.0
"""What a run came to: how much memory each mechanism saved or took, at most and in all."""

from __future__ import annotations

from dataclasses import dataclass, field

from memvirt.vmkernel.samples import Sample, VmMemory


@dataclass
class VmPeaks:
    """The most a VM had of each kind, in pages, over all samples."""

    consumed: float = 0.0
    shared_saved: float = 0.0
    balloon: int = 0
    zipped: int = 0
    swapped: int = 0

    def see(self, vm: VmMemory) -> None:
        for name in ("consumed", "shared_saved", "balloon", "zipped", "swapped"):
            setattr(self, name, max(getattr(self, name), getattr(vm, name)))


@dataclass
class Summary:
    """Follows a run sample by sample. Amounts are pages."""

    vms: dict[str, VmPeaks] = field(default_factory=dict)
    sharing_saved: int = 0
    zero: int = 0
    balloon: int = 0
    zip_saved: int = 0
    zipped: int = 0
    swapped: int = 0
    stored: int = 0
    in_use: int = 0  # guest pages with content, wherever it is
    frames_then: int = 0  # frames for guests at that moment
    last: Sample | None = None

    def see(self, sample: Sample) -> None:
        """Take one more sample into account."""
        host = sample.host
        self.last = sample
        for name in (
            "sharing_saved",
            "zero",
            "balloon",
            "zip_saved",
            "zipped",
            "swapped",
            "stored",
        ):
            setattr(self, name, max(getattr(self, name), getattr(host, name)))
        in_use = sum(vm.granted + vm.zipped + vm.swapped + vm.stored for vm in sample.vms)
        if in_use >= self.in_use:
            self.in_use, self.frames_then = in_use, host.guest + host.zip_frames
        for vm in sample.vms:
            self.vms.setdefault(vm.name, VmPeaks()).see(vm)

    def mechanisms(self) -> list[tuple[str, int, str]]:
        """(mechanism, pages at most at one moment, what that means)."""
        rows = [
            ("page sharing", self.sharing_saved, f"frames saved; {self.zero} pages of zeroes"),
            ("ballooning", self.balloon, "pages given up by the guests' own drivers"),
            ("compression", self.zip_saved, f"frames saved by {self.zipped} compressed pages"),
            ("swap", self.swapped, "pages in swap files"),
        ]
        if self.stored:
            rows.append(("others", self.stored, "pages that mechanisms from outside kept"))
        return rows
