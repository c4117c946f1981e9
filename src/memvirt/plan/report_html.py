# SPDX-License-Identifier: Apache-2.0
"""The report of a plan as one HTML file: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from .answer import HostAnswer, PlanAnswer, VmAnswer
from .findings import name_some
from .planner import touched
from .report_svg import Line, plot

_STYLE = """
:root{color-scheme:light dark;--line:#ccc;--soft:#f4f5f7;--ink:#1c2733;--dim:#5b6773}
@media(prefers-color-scheme:dark){:root{--line:#3a444f;--soft:#1d242c;--ink:#e3e8ee;--dim:#9aa7b4}
body{background:#12171d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);
max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:1rem;margin-bottom:.3rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid var(--line)}
.n{text-align:right}th,.n,td:first-child{white-space:nowrap}
thead th{color:var(--dim);font-weight:600}
.verdict{padding:.8rem 1rem;border-radius:6px;background:var(--soft);
border-left:6px solid #888;font-size:1.1rem}
.yes{border-color:#2e8b57}.no{border-color:#c0392b}.maybe{border-color:#d68910}
svg{width:100%;height:auto;min-width:600px}.words{min-width:14rem}
.grid{stroke:var(--line);stroke-width:1}.tick{font-size:11px;fill:var(--dim)}
.dim{color:var(--dim)}.scroll{overflow-x:auto;margin-bottom:1.2rem}
@media print{body{max-width:none;margin:0;font-size:12px}.scroll{overflow:visible}svg{min-width:0}
svg,tr{break-inside:avoid}h2,h3{break-after:avoid}thead{display:table-header-group}}
"""
_MOST_PLOTS, _MOST_ROWS = 12, 200
_MANY_WORDS = 30  # characters: such a column is not made narrow
# A number with its unit or a part, a range of such, or the dash that stands for none.
_AMOUNT = r"-?[\d,.]+(?:%| [KMGT]iB)?"
_NUMBER = re.compile(rf"(?:{_AMOUNT}(?: to {_AMOUNT})?(?: \(\d+%\)| of draws)?|-)$")
_MOST_LABELS = 8
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = (
    0.01, 0.05, 0.1, 0.5, 1, 5, 15, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR,
    12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 28 * _DAY,
)  # fmt: skip
_FORMS = ((7 * _DAY, "%d %b"), (_DAY, "%a %d"), (_MINUTE, "%a %d %H:%M"), (0, "%H:%M:%S"))


def page(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text; they are escaped here. Columns of numbers end at the right."""
    rows = list(rows)

    def kind(column: int) -> str:
        if all(_NUMBER.match(row[column]) for row in rows):
            return ' class="n"'
        longest = max((len(row[column]) for row in rows), default=0)
        return ' class="words"' if column and longest > _MANY_WORDS else ""

    kinds = [kind(column) for column in range(len(headings))]
    head = "".join(f"<th{k}>{escape(h)}</th>" for h, k in zip(headings, kinds, strict=True))
    lines = (
        "<tr>"
        + "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
        + "".join(lines)
        + "</tbody></table></div>"
    )


def gib(mib: float) -> str:
    """MiB as GiB, or as MiB where that is less than 10 GiB."""
    return f"{mib / 1024:,.1f} GiB" if abs(mib) >= 10 * 1024 else f"{mib:,.1f} MiB"


def span(low: float, high: float, form: str = "{:.1f}") -> str:
    """A range as text; one number if both ends read alike."""
    ends = [form.format(low), form.format(high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def gib_span(low: float, high: float) -> str:
    ends = [gib(low), gib(high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def plan_report(answer: PlanAnswer) -> str:
    """The report of one answer with its what-ifs."""
    mood = "yes" if answer.fits == 1 else "no" if answer.fits == 0 else "maybe"
    body = [
        "<h1>memvirt plan</h1>",
        f"<p>{escape(answer.question)}</p>",
        f'<p class="verdict {mood}">{escape(answer.verdict)}</p>',
        _setting(answer),
    ]
    if answer.what_ifs:
        rows = [what_if_row(other) for other in (answer, *answer.what_ifs)]
        body += ["<h2>What if</h2>", table(WHAT_IF_HEADINGS, rows)]
    if answer.failover is not None:
        body += ["<h2>Failures</h2>", f"<p>{escape(answer.failover.detail)}</p>"]
    body += _hosts(answer)
    body += _vms(answer)
    if answer.refused:
        rows = [(name, why) for name, why in answer.refused.items()]
        body += ["<h2>VMs that cannot be powered on</h2>", table(("VM", "why"), rows)]
    body += ["<h2>What this rests on</h2>", table(("", ""), answer.assumptions.items())]
    if answer.findings:
        items = "".join(f"<li>{escape(str(f))}</li>" for f in answer.findings)
        body += ["<h2>Noticed in the data</h2>", f"<ul>{items}</ul>"]
    return page("memvirt plan", body)


def _setting(answer: PlanAnswer) -> str:
    when = ""
    if answer.start > 1e8:
        when = datetime.fromtimestamp(answer.start, UTC).strftime(" from %Y-%m-%d")
    vms = sum(host.vms for host in answer.hosts)
    return (
        f'<p class="dim">{counted(vms, "VM")} on {counted(len(answer.hosts), "host")}; '
        f"{length(answer)}{when}; "
        f"{answer.draws} draws of what was "
        f"not measured, seed {answer.seed}.</p>"
    )


def counted(number: int, what: str) -> str:
    """ "1 host", "2 hosts"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def length(answer: PlanAnswer) -> str:
    """What the series of a plan cover, in words."""
    if answer.points == 1:
        return "one moment"
    days = answer.points * answer.interval_s / 86400
    span_text = f"{days:.1f} days" if days >= 1 else f"{days * 24:.2f} hours"
    return f"{answer.points:,} intervals of {answer.interval_s:g} s ({span_text})"


WHAT_IF_HEADINGS = ("", "verdict", "hosts", "worst state", "least free")


def what_if_row(answer: PlanAnswer) -> tuple[str, ...]:
    """One line about an answer."""
    order = ("high", "clear", "soft", "hard", "low")
    worst = max((order.index(host.worst_state[1]) for host in answer.hosts), default=0)
    least = min((host.lowest_free_mib[0] for host in answer.hosts), default=0.0)
    label = answer.question if answer.question.startswith("what if") else "as asked"
    return (label, answer.verdict, str(len(answer.hosts)), order[worst], gib(least))


def _hosts(answer: PlanAnswer) -> list[str]:
    hosts = sorted(answer.hosts, key=lambda host: (host.fits, host.lowest_free_mib[0]))
    rows = [host_row(host) for host in hosts[:_MOST_ROWS]]
    out = ["<h2>Hosts</h2>", table(HOST_HEADINGS, rows)]
    if len(hosts) > _MOST_ROWS:
        out.append(f'<p class="dim">and {len(hosts) - _MOST_ROWS} more that are better off</p>')
    for host in [host for host in hosts if host.series][:_MOST_PLOTS]:
        out += [
            f"<h3>{escape(host.name)}: {escape(host.limiting_hour)}</h3>",
            f"<p>{escape(host.why)}.{_advice(host)}</p>",
            _host_plot(answer, host),
        ]
    return out


HOST_HEADINGS = ("host", "memory", "VMs", "fits", "worst state", "least free", "peak demand")


def host_row(host: HostAnswer) -> tuple[str, ...]:
    """One line about a host."""
    return (
        host.name, gib(host.memory_mib), str(host.vms), f"{host.fits:.0%} of draws",
        host.worst_state[0] if len(set(host.worst_state)) == 1 else " to ".join(host.worst_state),
        gib_span(*host.lowest_free_mib), gib_span(*host.peak_demand_mib),
    )  # fmt: skip


def advice(host: HostAnswer) -> str:
    """What would make a host fit, in words; empty if it does."""
    if host.remedy is None:
        return ""
    steps = []
    limits = host.remedy.raise_limits_mib
    if limits:
        most = max(limits.values())
        upto = "up to " if len(limits) > 1 else ""
        steps.append(f"Raise the limit of {name_some(list(limits))} by {upto}{gib(most)}.")
    if host.remedy.remove:
        low, high = host.remedy.add_mib
        much = gib_span(low, high) if low else f"{'up to ' if high > low else ''}{gib(high)}"
        names = host.remedy.remove
        which = (
            f"{len(names)} VMs: {name_some(list(names))}" if len(names) > 1 else f"VM {names[0]}"
        )
        steps.append(f"Add {much} of memory, or remove {which}.")
    return " ".join(steps)


def _advice(host: HostAnswer) -> str:
    text = advice(host)
    return f" <b>{escape(text)}</b>" if text else ""


def _host_plot(answer: PlanAnswer, host: HostAnswer) -> str:
    series = {name: [v / 1024 for v in values] for name, values in host.series.items()}
    x = host.series["point"]
    memory = host.memory_mib / 1024
    lines = [
        Line("swapped", series["swapped"], "#c0392b", area=True),
        Line("compressed", series["compressed"], "#8e44ad", area=True),
        Line("ballooned", series["ballooned"], "#d68910", area=True),
        Line("demand", series["demand"], "#1f77b4"),
        Line("free", series["free"], "#2e8b57"),
        Line("memory", [memory] * len(x), "#888888", dashed=True),
    ]
    return plot(x, _time_labels(answer, x), lines, "GiB")


def _time_labels(answer: PlanAnswer, x: Sequence[float]) -> list[tuple[float, str]]:
    """Labels at round times, at most eight."""
    if len(x) < 2:
        return []
    dated = answer.start > 1e8
    start = answer.start if dated else 0.0
    first, last = (start + point * answer.interval_s for point in (x[0], x[-1]))
    steps = [step for step in _STEPS if step >= 1 or not dated]
    step = next((s for s in steps if (last - first) / s <= _MOST_LABELS), last - first)
    labels = []
    for number in range(math.ceil(first / step), math.floor(last / step) + 1):
        seconds = number * step
        if dated:
            form = next(form for least, form in _FORMS if step >= least)
            text = datetime.fromtimestamp(seconds, UTC).strftime(form)
        else:
            text = f"{seconds / _HOUR:g} h" if step >= 15 * _MINUTE else f"{seconds:g} s"
        labels.append(((seconds - start) / answer.interval_s, text))
    return labels


# Without a series, and with one.
HOURS_MEAN = {
    False: "hours in which memory is taken, lowest to highest draw (part of the draws)",
    True: "part of the draws in which memory is taken",
}


def vm_headings(*, moment: bool = False) -> tuple[str, ...]:
    """Headings of ``vm_row``; ``moment``: the data is of one, and hours have no meaning."""
    taken = ("ballooned", "compressed", "swapped", "thrashing")
    kinds = taken if moment else tuple(f"{kind} h" for kind in taken)
    return ("VM", "host", "memory", *kinds, "most taken")


def vm_row(vm: VmAnswer, *, moment: bool = False) -> tuple[str, ...]:
    """One line about a VM."""

    def cell(name: str) -> str:
        part = vm.probability[name]
        if not part:
            return "-"
        return f"{part:.0%}" if moment else f"{span(*vm.hours[name])} ({part:.0%})"

    cells = [cell(name) for name in ("balloon", "compress", "swap", "thrash")]
    most = max(vm.peak_mib[name][1] for name in ("balloon", "compress", "swap"))
    return (vm.name, vm.host, gib(vm.memory_mib), *cells, gib(most))


def _vms(answer: PlanAnswer) -> list[str]:
    found = touched(answer.vms)
    shown, moment = found[:_MOST_ROWS], answer.points == 1
    if not found:
        return ["<h2>VMs</h2>", "<p>Nothing is taken from any VM.</p>"]
    out = [
        "<h2>VMs that memory is taken from</h2>",
        f'<p class="dim">{HOURS_MEAN[moment]}</p>',
        table(vm_headings(moment=moment), (vm_row(vm, moment=moment) for vm in shown)),
    ]
    if len(found) > _MOST_ROWS:
        out.append(f'<p class="dim">and {len(found) - _MOST_ROWS} more that lose less</p>')
    return out
