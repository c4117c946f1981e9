# SPDX-License-Identifier: Apache-2.0
"""The control block: what the compiled MMU, VMM and processor kernels of one VM share.

One aligned NumPy record per VM, in the role that Intel's VMCS plays for VT-x: the C callbacks
receive its host address and find everything else from it. All fields are signed 64-bit words
(see ``native``). Fields named ``*_at`` hold host addresses of arrays the VM's Python objects
own and keep alive.
"""

from __future__ import annotations

import numpy as np
from numba import from_dtype

PAGING_SHADOW, PAGING_NESTED, PAGING_FLAT = 0, 1, 2

# Kinds of access, as the walkers take them.
READ, WRITE, FETCH = 0, 1, 2

# What a translation came to; everything from NEED_FRAMES on is for the VMM in Python.
OK = 0
TRUE_FAULT = 1  # the guest's own tables deny the access: #PF with fault_error
FLUSH_AND_RETRY = 2  # cached translations must go before the access may be tried again
DROP_CODE_AND_RETRY = 3  # translated code of frame exit_frame must go first
NOT_CANONICAL = 4  # #GP(0), never a page fault
NEED_FRAMES = 5  # the VM's reserve of zeroed frames is empty
NEED_PAGE = 6  # PPN exit_ppn must be brought back, or unshared if exit_write

# pmap states (vmm.pmap gives them their names) and flags, one byte each per PPN.
STATE_UNMAPPED, STATE_PRIVATE, STATE_SHARED, STATE_COMPRESSED, STATE_SWAPPED = range(5)
FLAG_TRACED = 1  # holds a guest page table with a synchronized shadow: writes are trapped
FLAG_EXECUTED = 2  # the processor may hold translated code of this page
FLAG_WRITE_CACHED = 4  # the processor may hold a write translation that would miss stale code
FLAG_SHADOWED = 8  # at least one shadow page table derives from this page
FLAG_SAMPLED = 16  # the host took its translations back to see whether it is touched; not yet
FLAG_WATCHED = 64  # the same, for the choice of pages to reclaim
FLAGS_UNTIL_TOUCHED = FLAG_SAMPLED | FLAG_WATCHED  # both end with the next access
FLAG_BALLOONED = 32  # the guest's balloon driver gave the page up; it is unmapped

_WORDS = [
    # Control registers, as the processor last held them.
    "cr0", "cr3", "cr4", "efer", "cpl", "alignment_check", "implicit_supervisor",
    # Width of a physical address: bits of an entry above it are reserved.
    "physical_address_bits", "has_1gib_pages",
    # Machine memory and its per-frame arrays.
    "memory_at", "machine_bytes", "frame_kind_at", "frame_owner_at", "frame_tag_at",
    "frame_references_at", "vm_id",
    # The pmap.
    "guest_pages", "pmap_state_at", "pmap_frame_at", "pmap_flags_at", "pmap_large_at",
    "rmap_head_at",
    # Reserve of zeroed frames already owned by this VM (MPNs, a stack).
    "reserve_at", "reserve_count", "frames_demand_allocated", "sampled_touches",
    # Pages with FLAG_BALLOONED now; those the guest touched without unlocking them, ever.
    "ballooned_pages", "balloon_touched",
    # Length of the IN that Python completes (io_status IO_BACKDOOR, IO_BALLOON).
    "io_instruction_bytes",
    # Paging mode; root MPN of the nested table, if nested.
    "paging", "nested_root", "nested_tables",
    # Cache of last-level nested entries, as a processor's nested TLB (NESTED_TLB_DTYPE).
    "nested_tlb_at", "nested_tlb_hits",
    # Shadow paging: current root and the mode it was built for; the pool of shadow pages.
    "shadow_root", "shadow_root_index",
    "shadow_levels", "shadow_mode", "shadow_root_cr3", "shadow_capacity", "shadow_free_head",
    "shadow_used", "shadow_pages_at", "shadow_copy_at", "rmap_next_at", "rmap_previous_at",
    "shadow_parent_at", "shadow_hash_at", "shadow_hash_mask", "unsynchronized_at",
    "unsynchronized_count",
    "shadow_stale",
    # MMIO windows on the processor's physical bus, above machine memory.
    "lapic_window", "hole_window", "lapic_gpa",
    # Result of a guest walk.
    "walk_levels", "walk_leaf_level", "walk_gpa", "walk_user", "walk_writable",
    "walk_no_execute", "walk_dirty", "walk_global", "walk_page_bytes",
    # Result of an access, or why it could not be made.
    "out_machine_address", "out_permissions", "out_large_page", "fault_error", "fault_level",
    "exit_ppn", "exit_write", "exit_frame", "violation_gpa", "violation_qualification",
    "violation_level",
    # Counters. References are reads of paging-structure entries.
    "tlb_fills", "walks", "walk_references", "guest_walks", "guest_walk_references",
    "hidden_faults", "true_faults", "trace_faults", "resynchronizations", "entries_dropped",
    "root_switches", "shadow_zaps", "revalidations", "mmio_fills", "large_fills",
    "code_drops", "tlb_flushes", "precise_writes",
    # The processor (cpu/): engine handle, register file, C functions.
    "control_at", "access_at", "engine", "registers_at", "fault_address_at", "emu_start_at",
    "emu_stop_at", "ctl_at",
    "reg_read_at", "reg_write_at", "error_code_at", "star_at", "lstar_at", "cstar_at",
    "fmask_at", "pc_at", "large_pages_at", "cpuid_at", "cpuid_count", "scratch_at",
    "rflags_register", "kernel_gs_at",
    # Why the engine stopped.
    "translation_status", "stop_vector", "stop_syscall", "stop_time",
    "identity_window", "io_status",
    # The frame whose code was dropped last, and when. Then a flush that is owed: how many blocks
    # may still begin before it, none of them in the pages from first to last (gVA).
    "dropped_frame", "dropped_code_bytes", "flush_owed", "owed_first", "owed_last",
    "aborted", "halted",
    "engine_error",
    # Pending event to deliver, and progress of its delivery.
    "event_vector", "event_has_error", "event_error", "event_is_software",
    "event_is_interrupt", "event_instruction_bytes", "fault_gva", "fault_access",
    # Virtual time. code_bytes counts bytes of guest code begun; idle_ns what hlt skipped, and
    # what the guest waited for its own pages (also in stall_ns).
    "code_bytes", "idle_ns", "stall_ns", "deadline_code_bytes", "time_deadline",
    "interrupt_waiting",
    "quantum_end_ns", "stop_asked",
    # Starts of the engine in a row that were stopped before their first block, and the count of
    # code bytes at the last of them.
    "stopped_starts", "stopped_code_bytes",
    # Exits by reason and events delivered.
    "engine_starts", "exits_page_fault", "exits_exception", "exits_syscall", "exits_halt",
    "exits_time", "exits_io", "exits_flush", "exits_code", "exits_need_frames",
    "exits_need_page", "interrupts_delivered", "exceptions_delivered", "port_accesses",
    "mmio_accesses", "time_stamp_reads", "cpuid_reads",
]  # fmt: skip

CONTROL_DTYPE = np.dtype(
    [(name, "i8") for name in _WORDS]
    + [
        ("walk_entry", "i8", (6,)),  # guest entry by level, after its A/D update
        ("walk_entry_gpa", "i8", (6,)),  # where that entry lies
        ("exceptions", "i8", (32,)),  # exceptions delivered, by vector
    ],
    align=True,
)
CONTROL_RECORD = from_dtype(CONTROL_DTYPE)

NESTED_TLB_ENTRIES = 4096
NESTED_TLB_DTYPE = np.dtype([("tag", "i8"), ("entry", "i8")])  # PPN + 1 (0: free), leaf entry


def new_control_block() -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """A zeroed control block, as an array of one record (so that it has a stable address)."""
    return np.zeros(1, CONTROL_DTYPE)
