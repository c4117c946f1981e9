# SPDX-License-Identifier: Apache-2.0
"""The policies there are, by name, and how to add one's own.

A scenario chooses by name (``[machine.Mem]``), or Python by ``MemoryOptions``:

- ``Reclaim``: reclaim mechanisms in order (``RECLAIM``: subclasses of ``ReclaimMechanism``);
- ``SwapVictims``: which pages are taken (``VICTIMS``: ``victims.VictimPolicy``);
- ``Allocation``: who is entitled to how much (``ALLOCATION``: ``allocation.AllocationPolicy``).

One's own policy is a class and a line, before the scenario is read::

    from memvirt.vmkernel.policies import VICTIMS

    VICTIMS.register("lowest", lambda options: LowestPages())

Events, counts and the summary show a mechanism under its name; nothing else has to be edited. A
mechanism that keeps pages in a store of its own registers that too (``host.stores``). A factory
gets the host's ``MemoryOptions``, and is called once for each host.
"""

from __future__ import annotations

from .allocation import AllocationPolicy, SharesAllocation, SizeAllocation
from .ballooning import BalloonMechanism
from .mechanisms import KeepIn, ReclaimMechanism
from .protocols import Place
from .registry import Registry
from .victims import IdleVictims, RandomVictims, VictimPolicy

__all__ = ["ALLOCATION", "RECLAIM", "VICTIMS"]

RECLAIM: Registry[ReclaimMechanism] = Registry("reclaim mechanism")
VICTIMS: Registry[VictimPolicy] = Registry("choice of victims")
ALLOCATION: Registry[AllocationPolicy] = Registry("allocation policy")

RECLAIM.register("balloon", lambda options: BalloonMechanism())
RECLAIM.register("discard", lambda options: KeepIn(Place("discard", drops=True, note="zeroes")))
RECLAIM.register("compress", lambda options: KeepIn(Place("compress", spills=True)))
RECLAIM.register("swap", lambda options: KeepIn(Place("swap")))

VICTIMS.register("random", lambda options: RandomVictims())
VICTIMS.register("idle", lambda options: IdleVictims())

ALLOCATION.register("shares", lambda options: SharesAllocation(options.idle_tax))
ALLOCATION.register("size", lambda options: SizeAllocation())
