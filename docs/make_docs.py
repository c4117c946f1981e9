# SPDX-License-Identifier: Apache-2.0
"""Write the generated documents: `make docs`. A test compares them with what is committed."""

from __future__ import annotations

import json
from pathlib import Path

from memvirt.cpu.unicorn.features import (
    HIDDEN,
    OFFERED,
    STOCK_ENGINE_LIMITS,
    STOCK_ENGINE_WRONG,
    Feature,
)
from memvirt.observe.esxtop import COLUMNS
from memvirt.scenario.scenario import bundled_scenarios
from memvirt.scenario.schema import key_tables, scenario_schema

DOCS = Path(__file__).parent

_SCENARIO = """\
# Scenarios

A scenario says which VMs run on which machine: `memvirt run FILE.toml`, or the name of a bundled one.
This page is generated (`make docs`), and so is the JSON Schema, [scenario.schema.json](../src/memvirt/scenario/scenario.schema.json), which `memvirt schema` prints.

```toml
[machine]
memory = "96M"
Mem.IdleTax = 75          # ESXi's names; the whole list is below

[[vm]]
name = "web"
count = 3                 # web-1, web-2, web-3
memory = "64M"
shares = "high"
group = "tenant-a"        # these three may share pages, with nobody else
append = "workload=fill"

[[vm]]
name = "batch"
memory = "64M"
reservation = "16M"
limit = "32M"
start = 0.5               # powered on after half a second of virtual time
```

Sizes are bytes, or text such as "64M" or "1.5G" (powers of 1024). Times are virtual seconds unless
they say otherwise. Paths start at the scenario's file. A mistake is reported with file, line, key and what would be right.

"""

_ESXTOP = """\
# The screen, as esxtop has it

`memvirt run` shows esxtop's memory screen, `--batch` prints its batch layout as CSV, `--record` keeps
the samples. Amounts are MB (MiB), rates MB a second of virtual time. `--columns NAME,SWCUR,...` chooses.
This page is generated (`make docs`).

## Above the table

| line | what |
|---|---|
| PMEM | machine memory: in all, the VMkernel's own (write buffers), what VMs take (guest pages, page tables, compression caches), free (unused reserves of VMs included) |
| VMKMEM | what the VMkernel manages, minimum free memory, reserved and unreserved memory (admission), the host's state |
| PSHARE | guest pages mapped to shared frames, those frames, the difference |
| SWAP | in swap files, last asked for by swap, read and written |
| ZIP | guest pages in compression caches, frames they save |
| MEMCTL | in balloons, target, most |

## Columns

| column | meaning | in batch mode: `Group Memory(N:NAME)\\...` |
|---|---|---|
"""

_ESXTOP_END = """
## Batch layout

The first row names the columns: the time, then counter paths `\\\\host\\Memory\\...` for the host and
`\\\\host\\Group Memory(N:NAME)\\...` for each VM of the scenario, empty until it is powered on. Of the
names we have seen these in public, in tools that read esxtop's output: for the host *Machine*, *Kernel*,
*NonKernel* and *Free MBytes*, *Kernel State*, *PShare Shared*, *Swap Target*, *Memctl Target*, *Swap
MBytes Read/sec* and *Write/sec*; for VMs *Memory Size*, *Granted*, *Consumed*, *Target Size*, *Touched*,
*% Active*, *Swapped*, *Swap Read* and *Written*, *Compressed Memory*, *Compression* and *Decompression*,
*Shared Saved*, *Overhead*. The others follow their pattern and may differ from ESXi's.

One row every `--interval` seconds of virtual time; its time is the start of the run and virtual time,
in whole seconds as esxtop's; the host's last counter, *Sample Time Seconds*, tells samples of one second apart.
In instance names, parentheses, commas, quotes and backslashes are replaced (`()` by `[]`): the number N is unique.
Everything that is not CSV goes to standard error.

## Records

`--record FILE.parquet` keeps every sample: one row for each VM, the fields of
`memvirt.vmkernel.samples.VmMemory` in 4 KiB pages, those of the host with the prefix `host_`
(`host_time_ns` is virtual time). The file's metadata has the scenario's text. `memvirt.observe.record`
has `read_record`; pandas, polars and DuckDB read it as it is.

`--events FILE.jsonl` (or `.csv`) writes the VMkernel's decisions: time in virtual nanoseconds, VM (empty
for the host), mechanism, pages, reason.
"""


_CPUID = """\
# CPUID: what a guest is offered, and what not

CPUID offers what is executed as the manual says, in every state of the control registers, and nothing else: a
flag that the engine announces and no table has is hidden. The tables are `cpu/unicorn/features.py`; this page is
made from them (`make docs`). Each feature offered has a guest that uses it (`tests/cpu/test_offered_features.py`).
Unmasked SSE exceptions raise no #XM, and x87 stack faults set no flags: [the engine's limits](engine.md#limits).

Leaves that describe what there is not (performance counters, topology, XSAVE, memory bandwidth, SGX, processor
trace) are zero. Leaf 0x15 and the hypervisor's leaves are described in [Linux](linux.md) and [the balloon](balloon.md).

"""

_CPUID_STOCK = """
## On the package index's build of the engine

Hidden too, as that build executes them wrongly:

"""

_CPUID_LIMITS = """
Offered, though wrong in a part, as no 64-bit kernel can be without them:

"""


def _features(title: str, features: tuple[Feature, ...]) -> str:
    rows = "".join(
        f"| {f.name} | {f.leaf:#x} | E{f.register.upper()}X | {f.bit} | {f.reason} |\n"
        for f in features
    )
    head = "| feature | leaf | register | bit | why |\n|---|---|---|---|---|\n"
    return f"## {title}\n\n{head}{rows}"


def _reasons(reasons: dict[str, str]) -> str:
    rows = "".join(f"| {name} | {reason} |\n" for name, reason in reasons.items())
    return f"| feature | why |\n|---|---|\n{rows}"


def cpuid_document() -> str:
    """docs/cpuid.md."""
    return (
        f"{_CPUID}{_features('Offered', OFFERED)}\n{_features('Hidden', HIDDEN)}"
        f"{_CPUID_STOCK}{_reasons(STOCK_ENGINE_WRONG)}"
        f"{_CPUID_LIMITS}{_reasons(STOCK_ENGINE_LIMITS)}"
    )


def documents() -> dict[str, str]:
    """The generated documents, by their paths from this folder."""
    schema = json.dumps(scenario_schema(), indent=2) + "\n"
    bundled = "## Bundled scenarios\n\n| name | what |\n|---|---|\n" + "".join(
        f"| `{name}` | {meaning} |\n" for name, meaning in bundled_scenarios().items()
    )
    columns = "".join(
        f"| {column.name} | {column.meaning} | {column.counter or '-'} |\n" for column in COLUMNS
    )
    return {
        "../src/memvirt/scenario/scenario.schema.json": schema,
        "scenario.md": f"{_SCENARIO}{key_tables()}\n{bundled}",
        "cpuid.md": cpuid_document(),
        "esxtop.md": f"{_ESXTOP}{columns}{_ESXTOP_END}",
    }


if __name__ == "__main__":
    for name, text in documents().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print((DOCS / name).resolve())
