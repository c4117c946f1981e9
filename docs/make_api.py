# SPDX-License-Identifier: Apache-2.0
"""Write docs/api.md: what is public, from the modules' ``__all__``. Run by ``make docs``."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "api.md"

_HEAD = """\
# Public API

What this page lists is public: the names in `__all__` of the modules below. All else is the project's own and
may change at any time. The page is generated (`make docs`); a test holds it, `__all__` and the docstrings
together, and runs the examples.

**Stability.** Before 1.0 a minor release (0.x) may change public names, and CHANGELOG.md says so; a patch
release changes none. From 1.0 on public names are removed or change their meaning in major releases only,
after a minor release in which they warn. File formats (snapshots, records, status of the pager) have versions
of their own; a reader refuses what it does not know in one line.

**Words.** Amounts of memory are 4 KiB pages unless a name says bytes or MiB; times are nanoseconds where a
name ends in `_ns`, else seconds; virtual time is the guest's. Addresses and page numbers have types of their
own (`memvirt.address`). Arrays have one dimension unless their docstring gives a shape; `PpnArray` holds
int64, `MpnArray` int64 or, from machine memory, uint32, `Flags` bool and `Hashes` uint64. What a user can mend is raised as a `MemvirtError` whose message is one clear line.
"""

# (title, example or "", modules)
_PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "A virtual machine",
        """\
from memvirt import Machine, VirtualMachine
from memvirt.images import image_path

machine = Machine("64M", scatter_seed=1)
with VirtualMachine(machine, memory="16M", paging="nested") as vm:
    vm.load(image_path("bundled"), append="workload=fill percent=5 passes=1")
    print(vm.run(timeout=120).reason.name)  # SUCCESS
""",
        ("memvirt", "memvirt.images", "memvirt.machine.memory", "memvirt.vmm.monitor", "memvirt.vmm.check"),
    ),
    (
        "Addresses",
        """\
from memvirt.address import GuestPhysicalAddress, physical_page_number

ppn = physical_page_number(GuestPhysicalAddress(0x5678))
print(hex(ppn))  # 0x5
""",
        ("memvirt.address",),
    ),
    (
        "Looking at a VM",
        """\
from memvirt import Machine, VirtualMachine
from memvirt.address import GuestVirtualAddress
from memvirt.images import image_path
from memvirt.observe.address_map import map_address, render
from memvirt.observe.view import live_view

with VirtualMachine(Machine("64M"), memory="16M") as vm:
    vm.load(image_path("bundled"), append="workload=fill")
    vm.run_quantum()
    print(render(map_address(live_view(vm), GuestVirtualAddress(vm.processor.get("rip")))))
""",
        (
            "memvirt.observe.view",
            "memvirt.observe.address_map",
            "memvirt.observe.snapshot",
            "memvirt.platform.text_screen",
            "memvirt.observe.statistics",
            "memvirt.observe.record",
        ),
    ),
    (
        "Hosts and scenarios",
        '''\
from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario

text = """
[machine]
memory = "64M"
[[vm]]
name = "one"
memory = "16M"
append = "workload=fill percent=5 passes=1"
"""
with Host(parse_scenario(text, "example")) as host:
    host.step()
    print(host.kernel.sample().vms[0].name)  # one
''',
        (
            "memvirt.host.host",
            "memvirt.host.vm_control",
            "memvirt.scenario.scenario",
            "memvirt.scenario.schema",
            "memvirt.vmkernel.samples",
            "memvirt.vmkernel.events",
        ),
    ),
    (
        "Policies",
        """\
from memvirt.vmkernel.admission import VmSettings
from memvirt.vmkernel.options import MemoryOptions
from memvirt.vmkernel.simulation import Simulation

simulation = Simulation(machine_pages=1 << 18, options=MemoryOptions())
for number in range(10):
    simulation.power_on(VmSettings(f"vm{number}", memory=1 << 16, shares=640), active=0.5)
simulation.run(seconds=5)
print(len(simulation.kernel.sample().vms))  # 10
""",
        (
            "memvirt.vmkernel.policies",
            "memvirt.vmkernel.registry",
            "memvirt.vmkernel.protocols",
            "memvirt.vmkernel.options",
            "memvirt.vmkernel.admission",
            "memvirt.vmkernel.simulation",
        ),
    ),
    ("Processors", "", ("memvirt.cpu.processor", "memvirt.cpu.debugging")),
    ("Live VMs of QEMU", "", ("memvirt.live.discovery", "memvirt.live.vm", "memvirt.live.address_map")),
    (
        "Planning, and content of dumps",
        """\
from memvirt.plan.question import parse_growth

print(parse_growth("20%"))  # 0.2
""",
        (
            "memvirt.plan.readers.detect",
            "memvirt.plan.fleet",
            "memvirt.plan.question",
            "memvirt.plan.planner",
            "memvirt.plan.executor",
            "memvirt.plan.answer",
            "memvirt.plan.dumps.detect",
            "memvirt.plan.content.analysis",
            "memvirt.plan.linux.page_use",
        ),
    ),
)  # fmt: skip


def modules() -> list[str]:
    """The public modules, in the order of the page."""
    return [name for _, _, names in _PARTS for name in names]


def examples() -> dict[str, str]:
    """The examples, by the title of their part."""
    return {title: example for title, example, _ in _PARTS if example}


def meaning(module: str, name: str) -> str:
    """The first line of what a public name's docstring says, or what a constant is."""
    value: Any = getattr(import_module(module), name)
    if hasattr(value, "__supertype__"):
        of = getattr(value.__supertype__, "__name__", str(value.__supertype__))
        return "an array of page numbers, one space" if of == "object" else f"a type of `{of}`"
    if isinstance(value, str) and name[0].isupper():
        return f"a type: `{value}`"
    if not (inspect.isclass(value) or callable(value)):
        return f"`{value!r}`" if isinstance(value, int | str) else f"a `{type(value).__name__}`"
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".").replace("|", "\\|")


def page() -> str:
    """docs/api.md."""
    parts = [_HEAD]
    for title, example, names in _PARTS:
        parts.append(f"\n## {title}\n")
        if example:
            parts.append(f"\n```python\n{example}```\n")
        for module in names:
            rows = "".join(
                f"| `{name}` | {meaning(module, name)} |\n"
                for name in sorted(import_module(module).__all__)
            )
            parts.append(f"\n### `{module}`\n\n| name | what |\n|---|---|\n{rows}")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
