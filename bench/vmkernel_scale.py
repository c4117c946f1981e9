# SPDX-License-Identifier: Apache-2.0
"""How an allocation round grows with the number of VMs: up to 1,000 VMs and 1 TiB of their memory.

Simulated guests (metadata only) of 1 GiB under the real VMkernel, on machines with plenty of free
memory and on machines in state hard. A round is one quiescent point with everything due: samples,
targets, reclaim, grants; between rounds all guests touch their working sets. CPU seconds.

Then a host as a whole, at a granule of 64 pages: 40 VMs with 1,200 GiB on 512 GiB.
"""

from __future__ import annotations

import resource
import time

from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.host_state import minimum_free_pages
from memvirt.vmkernel.managed import MINIMUM_GRANT
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.simulation import Simulation

VM_PAGES = 1 << 18
_COUNTS = (10, 100, 1000)
_ROUNDS = 5


def active(number: int) -> float:
    """VMs use from a tenth of their memory to all of it."""
    return 0.1 + 0.9 * (number % 10) / 9


def make(count: int, free_percent: float) -> Simulation:
    """A host whose VMs have touched 80 % of their working sets.

    ``free_percent`` of minimum free memory is left: below 32 the host is in state hard.
    """
    touched = [int(0.8 * active(number) * VM_PAGES) for number in range(count)]
    frames = sum(touched) + count * MINIMUM_GRANT
    frames += int(minimum_free_pages(sum(touched)) * free_percent / 100)
    options = MemoryOptions(SamplePeriod=1, BalancePeriod=1, ShareScanTime=0)
    host = Simulation(frames, options)
    for number in range(count):
        about = VmSettings(f"vm{number}", VM_PAGES, 10_240, reservation=VM_PAGES // 32)
        host.power_on(about, active=active(number))
    for guest, pages in zip(host.guests, touched, strict=True):
        guest.populate(pages)
    return host


def measure(count: int, free_percent: float) -> None:
    """The fastest of a few rounds, and the first, which has most to do."""
    host = make(count, free_percent)
    seconds, states = [], []
    for _ in range(_ROUNDS):
        started = time.process_time()
        host.kernel.balance(1_000_000_000)
        seconds.append(time.process_time() - started)
        states.append(host.kernel.state.worst.name.lower())
        for guest in host.guests:
            guest.step()
    swapped = host.kernel.sample().host.swapped
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(
        f"  {count:5} {count:8} GiB  {states[-1]:<6} {seconds[0]:8.3f} {min(seconds):8.3f} "
        f"{min(seconds) / count * 1e3:8.3f} {swapped:12,} {memory:8.2f} GiB"
    )


def overcommitted(granule: int, seconds: int = 120) -> None:
    """Simulated seconds for each CPU second, with the guests' steps: filling, then reclaiming."""
    host = Simulation(512 << 18, MemoryOptions(ShareScanTime=0), granule=granule)
    for number in range(40):
        about = VmSettings(f"vm{number}", 30 << 18, 10_240)
        host.power_on(about, active=0.2 + 0.8 * (number % 10) / 9, compressible=0.3)
    for part in (20, seconds - 20):
        started = time.process_time()
        host.run(part)
        speed = part / (time.process_time() - started)
        now = host.kernel.sample().host
        print(
            f"  {part:4} s at {speed:6.1f} x real time; guests have {now.guest / VM_PAGES:.0f} "
            f"GiB, swapped {now.swap_writes_total / VM_PAGES:,.0f} GiB, read back "
            f"{now.swap_reads_total / VM_PAGES:,.0f} GiB"
        )


def main() -> None:
    print("An allocation round (samples, targets, reclaim, grants) of VMs of 1 GiB, metadata only")
    print(
        f"  {'VMs':>5} {'memory':>12}  {'worst':<6} {'first s':>8} {'best s':>8} {'ms a VM':>8} "
        f"{'pages taken':>12} {'process':>12}"
    )
    for free_percent in (600.0, 20.0):
        for count in _COUNTS:
            measure(count, free_percent)
    print("40 VMs with 1,200 GiB on 512 GiB, a granule of 64 pages: a step each simulated second")
    overcommitted(64)
