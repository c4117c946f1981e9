# SPDX-License-Identifier: Apache-2.0
"""States and flags of a guest-physical page, one byte each per PPN in the pmap.

They are here because the second level of translation reads them where no nested table does
(``second_level.pmap_walk``). ``vmm.pmap`` gives the states their names.
"""

from __future__ import annotations

STATE_UNMAPPED, STATE_PRIVATE, STATE_SHARED, STATE_COMPRESSED, STATE_SWAPPED = range(5)

FLAG_TRACED = 1  # holds a guest page table with a synchronized shadow: writes are trapped
FLAG_UNWRITTEN = 2  # private, and not written to since the host last asked to notice it
FLAG_WRITE_CACHED = 4  # the processor may hold a translation that lets it write to this page
FLAG_SHADOWED = 8  # at least one shadow page table derives from this page
FLAG_SAMPLED = 16  # the host took its translations back to see whether it is touched; not yet
FLAG_BALLOONED = 32  # the guest's balloon driver gave the page up; it is unmapped
FLAG_WATCHED = 64  # as FLAG_SAMPLED, for the choice of pages to reclaim
FLAG_OBSERVED = 128  # as FLAG_SAMPLED, for a person who looks at the VM
# These end with the next access.
FLAGS_UNTIL_TOUCHED = FLAG_SAMPLED | FLAG_WATCHED | FLAG_OBSERVED
