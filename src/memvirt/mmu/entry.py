# SPDX-License-Identifier: Apache-2.0
"""Bits of page-table entries, control registers and fault codes.

Sources: Intel SDM vol. 3A ch. 4 (tables 4-4 to 4-20), sections 2.5 and 4.7; EPT entries from
vol. 3C section 29.3 (tables 29-1 to 29-7); AMD64 APM vol. 2 sections 5.3 and 5.4. Constants are
plain integers: inside kernels every word is a signed 64-bit integer (see ``native``).
"""

from __future__ import annotations

# Long-mode and PAE entries; 32-bit entries share the low twelve bits.
PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7  # PS: the entry maps a large page
GLOBAL = 1 << 8
NO_EXECUTE = -(1 << 63)
ENTRY_ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
ENTRY_NAMES = {
    PRESENT: "P",
    WRITABLE: "W",
    USER: "U",
    1 << 3: "PWT",
    1 << 4: "PCD",
    ACCESSED: "A",
    DIRTY: "D",
    LARGE: "PS",
    GLOBAL: "G",
    1 << 63: "NX",
}

# Software bits of a last-level shadow entry: the size of the guest's page, if it is large.
SHADOW_LARGE_SHIFT = 9
SHADOW_LARGE_MASK = 3 << SHADOW_LARGE_SHIFT  # 1: 2 MiB, 2: 4 MiB, 3: 1 GiB

# Control registers.
CR0_PE = 1 << 0
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_PGE = 1 << 7
CR4_LA57 = 1 << 12
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

# Page-fault error code (SDM 4.7).
FAULT_PRESENT = 1 << 0
FAULT_WRITE = 1 << 1
FAULT_USER = 1 << 2
FAULT_RESERVED = 1 << 3
FAULT_FETCH = 1 << 4

# EPT entries.
EPT_READ = 1 << 0
EPT_WRITE = 1 << 1
EPT_EXECUTE = 1 << 2
EPT_RIGHTS = EPT_READ | EPT_WRITE | EPT_EXECUTE
EPT_WRITE_BACK = 6 << 3  # memory type of a leaf
EPT_LARGE = 1 << 7
EPT_ENTRY_NAMES = {EPT_READ: "R", EPT_WRITE: "W", EPT_EXECUTE: "X", EPT_LARGE: "PS"}

# Exit qualification of an EPT violation (SDM table 28-7).
EPT_VIOLATION_READ = 1 << 0
EPT_VIOLATION_WRITE = 1 << 1
EPT_VIOLATION_FETCH = 1 << 2
EPT_MISCONFIGURATION = 1 << 32  # not a hardware bit: a violation of another kind

# Paging modes of the guest, with the number of levels of its tables.
MODE_OFF, MODE_2LEVEL, MODE_PAE, MODE_4LEVEL, MODE_5LEVEL = 0, 2, 3, 4, 5
MODE_NAMES = {
    MODE_OFF: "paging off",
    MODE_2LEVEL: "32-bit",
    MODE_PAE: "PAE",
    MODE_4LEVEL: "4-level",
    MODE_5LEVEL: "5-level",
}
LEVEL_NAMES = {5: "PML5E", 4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}
