# SPDX-License-Identifier: Apache-2.0
"""An analysis for people: rows of tables, and the HTML report."""

from __future__ import annotations

from html import escape

from memvirt.address import PAGE_BYTES
from memvirt.plan.linux.page_use import USE_NAMES, PageUse
from memvirt.plan.report_html import page, table
from memvirt.plan.report_svg import bars
from memvirt.size import format_size

from .analysis import LIVE_VM, Analysis, PageClass, VmContent

_COLOURS = ("#9aa5b1", "#2e8b57", "#1f77b4", "#8e44ad", "#d68910")
_PARTS = tuple(
    (kind.name.lower(), colour) for kind, colour in zip(PageClass, _COLOURS, strict=True)
)
_MOST_PAIRS = 20

VM_HEADINGS = ("VM", "dump", "memory", "zero", "equal", "similar", "compressible", "other")
SAVINGS_HEADINGS = ("", "saves", "of all pages")
PAIR_HEADINGS = ("VM", "with", "sharing saves")
USE_HEADINGS = ("use", "memory", "zero", "equal", "similar", "compressible", "other")
VM_USE_HEADINGS = ("VM", "free", "cache", "anonymous", "tables", "kernel", "rest", "Linux")
_VM_USES = (
    (PageUse.FREE,), (PageUse.PAGE_CACHE, PageUse.SHARED_MEMORY), (PageUse.ANONYMOUS,),
    (PageUse.PAGE_TABLE,), (PageUse.SLAB, PageUse.KERNEL), (PageUse.BALLOONED, PageUse.OUTSIDE),
)  # fmt: skip
_MOST_PROBLEMS = 8


def sources(found: Analysis) -> str:
    """How many dumps and live VMs there were, in words."""
    live = sum(vm.kind == LIVE_VM for vm in found.vms)
    counts = ((len(found.vms) - live, "dump"), (live, "live VM"))
    return " and ".join(f"{count:,} {what}{'s' * (count != 1)}" for count, what in counts if count)


def vm_row(vm: VmContent) -> tuple[str, ...]:
    """One line about a dump."""
    parts = [f"{vm.classes[kind.name.lower()] / max(vm.pages, 1):.1%}" for kind in PageClass]
    return (vm.name, vm.kind, format_size(vm.pages * PAGE_BYTES), *parts)


def total_row(found: Analysis) -> tuple[str, ...]:
    """The line about all dumps."""
    parts = [f"{found.classes[kind.name.lower()] / max(found.pages, 1):.1%}" for kind in PageClass]
    return ("all", "", format_size(found.pages * PAGE_BYTES), *parts)


def savings_rows(found: Analysis) -> list[tuple[str, ...]]:
    """What each way of saving saves alone, and all together."""
    saved = found.savings
    names = {
        "sharing": saved.sharing, "patching": saved.patching, "compression": saved.compression,
        "all three, each page once": saved.together,
    }  # fmt: skip
    if "free" in found.uses:
        free = found.uses["free"]
        names["free pages of Linux that hold something"] = sum(free.values()) - free["zero"]
    return [
        (name, format_size(pages * PAGE_BYTES), f"{pages / max(found.pages, 1):.1%}")
        for name, pages in names.items()
    ]


def use_rows(found: Analysis) -> list[tuple[str, ...]]:
    """What Linux guests use pages for, and what those pages are: parts of each use."""
    rows = []
    for use in PageUse:
        classes = found.uses.get(use.name.lower())
        if classes is not None:
            pages = sum(classes.values())
            parts = [f"{classes[kind.name.lower()] / max(pages, 1):.1%}" for kind in PageClass]
            rows.append((USE_NAMES[use], format_size(pages * PAGE_BYTES), *parts))
    return rows


def vm_use_rows(found: Analysis) -> list[tuple[str, ...]]:
    """The uses of each VM whose kernel was read."""
    return [
        (
            vm.name,
            *(
                format_size(sum(vm.uses.get(use.name.lower(), 0) for use in uses) * PAGE_BYTES)
                for uses in _VM_USES
            ),
            vm.linux,
        )
        for vm in found.vms
        if vm.linux
    ]


def use_problems(found: Analysis) -> list[str]:
    """Why the uses of some VMs are not known; empty if no VM is known to run Linux."""
    missing = [vm for vm in found.vms if not vm.linux]
    if len(missing) == len(found.vms):
        return [f"{vm.name}: {vm.linux_problem}" for vm in missing if "no Linux" not in
                vm.linux_problem][:_MOST_PROBLEMS]  # fmt: skip
    lines = [f"{vm.name}: {vm.linux_problem}" for vm in missing[:_MOST_PROBLEMS]]
    if len(missing) > _MOST_PROBLEMS:
        lines.append(f"and {len(missing) - _MOST_PROBLEMS} more VMs whose pages' use is not known")
    return lines


def pair_rows(found: Analysis, most: int = _MOST_PAIRS) -> list[tuple[str, ...]]:
    """The VMs to put together."""
    return [(a, b, format_size(pages * PAGE_BYTES)) for a, b, pages in found.partners[:most]]


def analysis_report(found: Analysis) -> str:
    """The report as one HTML file."""
    mib = PAGE_BYTES / (1 << 20)
    rows = [
        (vm.name, [vm.classes[kind.name.lower()] * mib for kind in PageClass]) for vm in found.vms
    ]
    body = [
        "<h1>memvirt analyze</h1>",
        f"<p>{sources(found)}, {format_size(found.pages * PAGE_BYTES)}; pages may be shared by "
        f"{escape(_SHARERS[found.share])}.</p>",
        "<h2>What the pages are</h2>",
        bars(rows, _PARTS, "MiB"),
        table(VM_HEADINGS, [*(vm_row(vm) for vm in found.vms), total_row(found)]),
        "<h2>What could be saved</h2>",
        table(SAVINGS_HEADINGS, savings_rows(found)),
        f'<p class="dim">{escape(NOTE)}</p>',
    ]
    if found.uses:
        body += [
            "<h2>What Linux guests use their pages for</h2>",
            table(USE_HEADINGS, use_rows(found)),
            table(VM_USE_HEADINGS, vm_use_rows(found)),
            f'<p class="dim">{escape(USE_NOTE)}</p>',
        ]
    body += [f'<p class="dim">{escape(line)}</p>' for line in use_problems(found)]
    if found.partners:
        body += ["<h2>VMs to put together</h2>", table(PAIR_HEADINGS, pair_rows(found))]
    return page("memvirt analyze", body)


_SHARERS = {
    "all": "all VMs", "folder": "VMs whose dumps are in one folder", "vm": "no two VMs",
}  # fmt: skip
NOTE = (
    "Patching keeps a page as a patch of at most half a page against a similar one. Compression "
    "keeps pages that shrink to a half or a quarter; it counts all such pages, used or not, so it "
    "is the most that a host could gain."
)
USE_NOTE = (
    "From the kernel's own memory map. Free pages are those of its page allocator; what they hold "
    "is needed by nobody, and a balloon or free page reporting gives it back. Shared memory is "
    "page cache with no file behind it."
)
