# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark, or those named: ``python -m bench [tlb_miss] [exits] ...``."""

from __future__ import annotations

import sys

from bench import (
    exits,
    first_touch,
    fleet,
    linux_boot,
    live_watch,
    many_vms,
    overcommit,
    page_sharing,
    paging_live,
    reclaim,
    swap_victims,
    tlb_miss,
    vmkernel_scale,
    web,
)

_BENCHMARKS = {
    "tlb_miss": tlb_miss.main,
    "first_touch": first_touch.main,
    "exits": exits.main,
    "page_sharing": page_sharing.main,
    "reclaim": reclaim.main,
    "swap_victims": swap_victims.main,
    "overcommit": overcommit.main,
    "many_vms": many_vms.main,
    "paging_live": paging_live.main,
    "vmkernel_scale": vmkernel_scale.main,
    "fleet": fleet.main,
    "linux_boot": linux_boot.main,
    "live_watch": live_watch.main,
    "web": web.main,
}


def main() -> None:
    names = sys.argv[1:] or list(_BENCHMARKS)
    unknown = [name for name in names if name not in _BENCHMARKS]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]}; there are {', '.join(_BENCHMARKS)}")
    for name in names:
        _BENCHMARKS[name]()


main()
