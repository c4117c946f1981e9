# SPDX-License-Identifier: Apache-2.0
"""Files of every kind that memvirt reads: changed, and read as the command reads them."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import openpyxl

from memvirt import Machine, VirtualMachine
from memvirt.errors import MemvirtError
from memvirt.host.host import Host
from memvirt.plan.fleet import assemble
from memvirt.plan.readers.detect import read_files
from memvirt.scenario.scenario import bundled_scenarios, find_scenario, load_scenario
from tests.observe.snapshots import good_snapshot, is_harmless, shown_of
from tests.platform import images

from .case import Case, Verdict, one_line
from .guests import QUANTUM_NS, end_of
from .mutations import (
    STRANGE_NUMBERS,
    STRANGE_TEXTS,
    WIDE,
    change_bytes,
    change_members,
    change_snapshot,
    change_text,
    members,
    packed,
)

_MOST_TO_RUN = 64 << 20  # bytes of machine memory


def refusal(error: Exception) -> Verdict:
    """The verdict on an error: it is to be a refusal in one line, as the command would print it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, MemvirtError):
        raise error
    if not one_line(text):
        return Verdict(False, "a refusal that is not one line", repr(text)[:500])
    return Verdict(True, "refused in one line", text)


# Images ----------------------------------------------------------------------------------------


def _an_image(draw: random.Random) -> tuple[str, bytes]:
    """A protocol, and a good image of it or one whose fields are drawn."""

    def word(good: int) -> int:
        return good if draw.random() < 0.6 else draw.choice(WIDE)

    def narrow(good: int, bits: int = 32) -> int:
        return word(good) & (1 << bits) - 1

    choice = draw.randrange(5)
    if choice == 0:
        return "linux", images.bzimage(
            version=narrow(0x20F, 16), xloadflags=narrow(1, 16), preferred=word(0x100000),
            init_size=narrow(0x10000), initrd_addr_max=narrow(0x7FFF_FFFF),
        )  # fmt: skip
    if choice == 1:
        return "elf", images.elf64(
            paddr=word(0x100000), vaddr=word(0x100000), entry=word(0x100010),
            machine=narrow(62, 16), kind=narrow(2, 16), program_type=narrow(1),
            extra_memory=word(0x1000), copies=draw.choice((1, 1, 2, 0, 300)),
        )  # fmt: skip
    if choice == 2:
        return "multiboot", images.multiboot_elf32(narrow(3))
    if choice == 3:
        return "multiboot", images.multiboot_flat(
            padding=draw.choice((0, 4, 64, 8000)), load_end=narrow(0), bss_end=narrow(0),
            entry=narrow(0x100080),
        )  # fmt: skip
    return "flat", draw.choice((b"", b"\xf4", draw.randbytes(5000), bytes(4 << 20)))


def make_image(draw: random.Random) -> Case:
    protocol, image = _an_image(draw)
    if draw.random() < 0.8:
        image = change_bytes(draw, image, first=1200)
    options = {
        "protocol": protocol if draw.random() < 0.7 else draw.choice(("auto", "linux", "flat")),
        "memory": draw.choice(("1M", "2M", "4M", "16M", 4096, 1 << 20, 3 << 30)),
        "append": draw.choice(("", "a=b", "x" * 300, *STRANGE_TEXTS)),
        "paging": draw.choice(("flat", "shadow", "nested")),
    }
    files = {"guest.img": image}
    if draw.random() < 0.3:
        files["initrd"] = draw.choice((b"", b"x", bytes(5000), bytes(1 << 20)))
    return Case("image", files, options)


def run_image(case: Case) -> Verdict:
    """Load it as ``memvirt boot`` does, and begin it if it is taken."""
    options = case.options
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "guest.img"
        path.write_bytes(case.files["guest.img"])
        initrd: Path | bytes = b""
        if "initrd" in case.files:
            initrd = Path(name) / "initrd"
            initrd.write_bytes(case.files["initrd"])
        try:
            with VirtualMachine(
                Machine("64M"), memory=options["memory"], paging=options["paging"]
            ) as vm:
                vm.load(path, append=options["append"], initrd=initrd, protocol=options["protocol"])
                for _ in range(3):
                    if vm.run_quantum(QUANTUM_NS) is not None:
                        break
                return end_of(vm, 0)
        except Exception as error:
            return refusal(error)


# Snapshots -------------------------------------------------------------------------------------


@cache
def _good_snapshot() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return good_snapshot(Path(name) / "vm")


def make_snapshot(draw: random.Random) -> Case:
    return Case("snapshot", {"vm": change_snapshot(draw, _good_snapshot())})


def run_snapshot(case: Case) -> Verdict:
    """All that ``memvirt map`` does with one."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "vm"
        path.write_bytes(case.files["vm"])
        try:
            for text in shown_of(path):
                if not is_harmless(text):
                    return Verdict(False, "a terminal would obey the text", repr(text)[:500])
        except Exception as error:
            return refusal(error)
    return Verdict(True, "used")


# Scenarios -------------------------------------------------------------------------------------

SMALL_SCENARIO = """timeout = 5
seed = 1
check = true
[machine]
memory = "32M"
quantum_ms = 0.5
swap = "64M"
scatter_seed = 1
[machine.Mem]
IdleTax = 75
MemZipCodec = "lz4"
[[machine.resize]]
at = 0.001
memory = "24M"
[[vm]]
name = "a"
memory = "8M"
paging = "shadow"
shares = "high"
reservation = "4M"
limit = "8M"
count = 2
start = 0.001
append = "workload=fill"
[[vm]]
name = "b"
memory = "8M"
[remap]
every_ms = 1
move = 0.1
unmap = 0.1
"""


@cache
def _scenarios() -> tuple[str, ...]:
    bundled = (find_scenario(name).read_text() for name in bundled_scenarios())
    return (SMALL_SCENARIO, SMALL_SCENARIO, *bundled)


def make_scenario(draw: random.Random) -> Case:
    return Case("scenario", {"s.toml": change_text(draw, draw.choice(_scenarios()))})


def run_scenario(case: Case) -> Verdict:
    """Read it; begin it if it is small."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s.toml"
        path.write_bytes(case.files["s.toml"])
        try:
            scenario = load_scenario(path)
            vms = sum(options.count for options in scenario.vm)
            if scenario.machine.memory > _MOST_TO_RUN or vms > 4 or scenario.machine.quantum_ms > 1:
                return Verdict(True, "read")
            with Host(scenario) as host:
                for _ in range(4):
                    host.step()
                if host.errors:
                    return Verdict(False, "an error inside memvirt", host.errors[0])
                if host.violations:
                    return Verdict(False, "an invariant is broken", str(host.violations[0]))
        except Exception as error:
            return refusal(error)
    return Verdict(True, "begun")


# Measurements for plans ------------------------------------------------------------------------

_PLAIN = """vm,time,memory_mib,in_use_mib,active_mib,reservation,limit,shares,group,power,host
a,0,4096,2000,500,1G,-1,normal,g,on,h1
a,60,4096,2100,400,1G,-1,normal,g,on,h1
b,0,2048,1000,10,0,2G,2000,,on,h2
b,60,2048,1010,20,0,2G,2000,,off,h2
"""
_RVTOOLS = """VM,Powerstate,Size MiB,Overhead,Consumed,Swapped,Ballooned,Active,Shares,Limit
web,poweredOn,8192,80,6000,100,50,900,81920,-1
db,poweredOff,4096,60,3000,0,0,100,40960,2048
"""
_PROMETHEUS = """{"status": "success",
"data": {"resultType": "matrix", "result": [
{"metric": {"__name__": "libvirt_domain_memory_stats_rss_bytes",
"domain": "a"},
"values": [[1700000000, "1000000"],
[1700000060, "2000000"]]}]}}
"""
_BITBRAINS = (
    "Timestamp [ms];\tCPU cores;\tMemory capacity provisioned [KB];\tMemory usage [KB]\n"
    "1376314846;\t4;\t67108864;\t6129274\n1376315146;\t4;\t67108864;\t6099274\n"
)
_ESXTOP = (
    '"(PDH-CSV 4.0) (UTC)(0)","\\\\h\\Group Memory(1:a)\\Memory Size MBytes",'
    '"\\\\h\\Group Memory(1:a)\\Touched MBytes"\n'
    '"11/25/2026 10:00:00","4096.00","100.00"\n"11/25/2026 10:00:05","4096.00","110.00"\n'
)
MEASUREMENTS = {"plain.csv": _PLAIN, "rvtools.csv": _RVTOOLS, "query.json": _PROMETHEUS,
                 "1.csv": _BITBRAINS, "esxtop.csv": _ESXTOP}  # fmt: skip


@cache
def _workbook() -> dict[str, bytes]:
    """The parts of an RVTools export, without what tells the time."""
    book = openpyxl.Workbook()
    for name in ("vInfo", "vMemory"):
        sheet = book.create_sheet(name)
        for line in _RVTOOLS.splitlines():
            sheet.append([int(cell) if cell.isdigit() else cell for cell in line.split(",")])
    out = io.BytesIO()
    book.save(out)
    parts = members(out.getvalue())
    return {name: part for name, part in parts.items() if not name.startswith("docProps")}


def _changed_workbook(draw: random.Random) -> bytes:
    parts = dict(_workbook())
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(list(parts))
        if draw.random() < 0.5:
            text = parts[name].decode().replace("><", ">\n<")
            parts[name] = change_text(draw, text)
        else:
            parts = change_members(draw, parts) or parts
    return packed(parts) if draw.random() < 0.8 else change_bytes(draw, packed(parts))


def make_plan(draw: random.Random) -> Case:
    if draw.random() < 0.2:
        return Case("plan", {"export.xlsx": _changed_workbook(draw)})
    name = draw.choice(list(MEASUREMENTS))
    return Case("plan", {name: change_text(draw, MEASUREMENTS[name])})


def run_plan(case: Case) -> Verdict:
    """Read measurements and put a fleet together."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, content in case.files.items():
            paths.append(Path(folder) / name)
            paths[-1].write_bytes(content)
        try:
            fleet = assemble(read_files(paths))
        except Exception as error:
            return refusal(error)
        for finding in fleet.findings:
            if not one_line(str(finding)):
                return Verdict(False, "a finding that is not one line", repr(str(finding))[:500])
    return Verdict(True, "read")


def strange_number(draw: random.Random) -> str:
    """For a command line: no NUL, which no program can be given."""
    return draw.choice([text for text in STRANGE_NUMBERS + STRANGE_TEXTS if "\0" not in text])


FILES: dict[str, tuple[Callable[[random.Random], Case], Callable[[Case], Verdict]]] = {
    "image": (make_image, run_image),
    "snapshot": (make_snapshot, run_snapshot),
    "scenario": (make_scenario, run_scenario),
    "plan": (make_plan, run_plan),
}
