# SPDX-License-Identifier: Apache-2.0
"""Guests from a seed, run alone in a paging mode, or on a host beside one that must verify."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memvirt import EndReason, Machine, VirtualMachine
from memvirt.compiled import compile_seconds
from memvirt.host.host import Host, HostInterrupted
from memvirt.scenario.scenario import load_scenario
from memvirt.vmm.check import check_machine

from .case import Case, Verdict, one_line
from .guest_code import random_code
from .guest_image import MEMORY, Mode, guest_image
from .page_tables import random_paging
from .storms import apic_storm, balloon_abuse, port_storm

QUANTUM_NS = 100_000
_QUANTA = 30
_SLOW_SECONDS = 5.0  # of the host's processor, for one quantum
_IMAGE = "guest.img"

# What no guest can do to itself: memvirt has failed.
OUR_FAULT = (
    EndReason.ENGINE_ERROR,
    EndReason.INTERNAL_ERROR,
    EndReason.MISCONFIGURED,
    EndReason.OUT_OF_MEMORY,
    EndReason.PAGE_LOST,
)


def _image(draw: random.Random, mode: Mode, pieces: list[bytes]) -> bytes:
    paging = random_paging(draw, mode)
    return guest_image(
        draw, mode, pieces, tables=paging.tables, cr0=paging.cr0, cr3=paging.cr3, cr4=paging.cr4,
        efer=paging.efer, user=draw.choice((0.0, 0.0, 0.3, 1.0)),
    )  # fmt: skip


def _code(*modes: Mode) -> Callable[[random.Random], bytes]:
    def make(draw: random.Random) -> bytes:
        mode = draw.choice(modes)
        return _image(draw, mode, random_code(draw, mode))

    return make


def _storm(pieces: Callable[[random.Random], list[bytes]]) -> Callable[[random.Random], bytes]:
    def make(draw: random.Random) -> bytes:
        return _image(draw, Mode.PROTECTED_32, pieces(draw))

    return make


IMAGES: dict[str, Callable[[random.Random], bytes]] = {
    "code16": _code(Mode.REAL, Mode.PROTECTED_16),
    "code32": _code(Mode.PROTECTED_32),
    "code64": _code(Mode.LONG),
    "ports": _storm(port_storm),
    "apic": _storm(apic_storm),
    "balloon": _storm(balloon_abuse),
}


def make_guest(kind: str, draw: random.Random) -> Case:
    """A guest of ``kind`` and how it is run."""
    options = {
        "paging": draw.choice(("flat", "shadow", "nested", "shadow", "nested")),
        "remap_seed": draw.getrandbits(32),
        "balloon_target": draw.choice((0, 1, 100, 1024)),
    }
    return Case(kind, {_IMAGE: IMAGES[kind](draw)}, options)


def end_of(vm: VirtualMachine, slowest: float) -> Verdict:
    """The verdict on a VM that was run: how it ended, or that it runs on."""
    if slowest > _SLOW_SECONDS:
        return Verdict(False, "a quantum without end", f"{slowest:.1f} CPU seconds", slowest)
    if vm.outcome is None:
        return Verdict(True, "runs on", "", slowest)
    reason, detail = vm.outcome.reason, vm.outcome.detail
    good = reason not in OUR_FAULT and (not detail or one_line(detail))
    return Verdict(good, f"ends: {reason.value}", detail, slowest)


class _Remapping:
    """What a host does to a guest between its quanta, by a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def __call__(self, vm: VirtualMachine) -> None:
        if vm.paging.name == "FLAT" or self.draw.random() < 0.5:
            return
        pages = vm.vmm.pmap.pages
        choice = self.draw.random()
        if choice < 0.3:
            vm.vmm.unmap(np.arange(pages))
        elif choice < 0.8:
            first = self.draw.randrange(pages)
            vm.vmm.unmap(np.arange(first, min(first + self.draw.randrange(1, 512), pages)))
        else:
            vm.vmm.move(np.array(self.draw.sample(range(pages), 64)))


def run_guest(case: Case) -> Verdict:
    """Alone on a machine, its pages taken and moved between quanta, the invariants checked."""
    paging = case.options["paging"]
    machine = Machine("32M", scatter_seed=None if paging == "flat" else 3)
    with VirtualMachine(machine, memory=MEMORY, paging=paging) as vm:
        vm.load(case.files[_IMAGE])
        vm.balloon.target = case.options["balloon_target"]
        remapping = _Remapping(case.options["remap_seed"])
        slowest = 0.0
        for number in range(_QUANTA):
            before, compiled = time.thread_time(), compile_seconds() or 0.0
            ended = vm.run_quantum(QUANTUM_NS)
            compiled = (compile_seconds() or 0.0) - compiled  # no guest's fault
            slowest = max(slowest, time.thread_time() - before - compiled)
            if paging != "flat" and (ended or number % 4 == 0):
                violations = check_machine(machine, [vm.vmm])
                if violations:
                    return Verdict(False, "an invariant is broken", str(violations[0]), slowest)
            if ended or slowest > _SLOW_SECONDS:
                break
            remapping(vm)
        return end_of(vm, slowest)


# No limit of time: the machine may be busy. Few rounds: each may cost a hostile guest's share.
_SCENARIO = """timeout = 1e6
[machine]
memory = "24M"
quantum_ms = 5
[[vm]]
name = "hostile"
memory = "4M"
image = "{image}"
paging = "{paging}"
[[vm]]
name = "good"
memory = "4M"
paging = "{other}"
append = "workload=fill passes=1"
[remap]
every_ms = 5
seed = 1
move = 0.1
unmap = 0.1
share = true
"""


def make_neighbours(draw: random.Random) -> Case:
    """A hostile guest of any kind, and the paging modes of it and of the other."""
    image = IMAGES[draw.choice(list(IMAGES))](draw)
    modes = {name: draw.choice(("shadow", "nested")) for name in ("paging", "other")}
    return Case("neighbours", {_IMAGE: image}, modes)


def run_neighbours(case: Case) -> Verdict:
    """On one host: the good VM must verify, whatever the hostile one does."""
    with tempfile.TemporaryDirectory() as name:
        image, scenario = Path(name) / _IMAGE, Path(name) / "s.toml"
        image.write_bytes(case.files[_IMAGE])
        scenario.write_text(_SCENARIO.format(image=image, **case.options))
        with Host(load_scenario(scenario), check_every=4) as host:
            hostile, good = host.vms
            with contextlib.suppress(HostInterrupted):
                host.run(interrupted=lambda: good.outcome is not None)
            if host.errors:
                return Verdict(False, "an error inside memvirt", host.errors[0])
            if host.violations:
                return Verdict(False, "an invariant is broken", str(host.violations[0]))
            if good.outcome is None or good.outcome.reason is not EndReason.SUCCESS:
                return Verdict(False, "the other VM fails", str(good.outcome))
            verdict = end_of(hostile, 0)
            return Verdict(verdict.good, f"the other verifies; {verdict.outcome}", verdict.detail)
