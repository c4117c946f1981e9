# SPDX-License-Identifier: Apache-2.0
"""An analysis for people: rows of tables, and the HTML report."""

from __future__ import annotations

from html import escape

from memvirt.address import PAGE_BYTES
from memvirt.plan.report_html import page, table
from memvirt.plan.report_svg import bars
from memvirt.size import format_size

from .analysis import Analysis, PageClass, VmContent

_COLOURS = ("#9aa5b1", "#2e8b57", "#1f77b4", "#8e44ad", "#d68910")
_PARTS = tuple(
    (kind.name.lower(), colour) for kind, colour in zip(PageClass, _COLOURS, strict=True)
)
_MOST_PAIRS = 20

VM_HEADINGS = ("VM", "dump", "memory", "zero", "equal", "similar", "compressible", "other")
SAVINGS_HEADINGS = ("", "saves", "of all pages")
PAIR_HEADINGS = ("VM", "with", "sharing saves")


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
    return [
        (name, format_size(pages * PAGE_BYTES), f"{pages / max(found.pages, 1):.1%}")
        for name, pages in names.items()
    ]


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
        f"<p>{len(found.vms)} dumps, {format_size(found.pages * PAGE_BYTES)}; pages may be shared "
        f"by {escape(_SHARERS[found.share])}.</p>",
        "<h2>What the pages are</h2>",
        bars(rows, _PARTS, "MiB"),
        table(VM_HEADINGS, [*(vm_row(vm) for vm in found.vms), total_row(found)]),
        "<h2>What could be saved</h2>",
        table(SAVINGS_HEADINGS, savings_rows(found)),
        f'<p class="dim">{escape(NOTE)}</p>',
    ]
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
