# SPDX-License-Identifier: Apache-2.0
"""One access to guest memory: its kinds, and what its translation can come to."""

from __future__ import annotations

# Kinds of access, as the walkers take them.
READ, WRITE, FETCH = 0, 1, 2

# What a translation came to. From NEED_FRAMES on it is for the VMM in Python. Processors add
# statuses of their own from PROCESSOR_STATUSES on (``cpu.unicorn.engine_state``).
OK = 0
TRUE_FAULT = 1  # the guest's own tables deny the access: #PF with fault_error
FLUSH_AND_RETRY = 2  # cached translations must go before the access may be tried again
NOT_CANONICAL = 4  # #GP(0), never a page fault
NEED_FRAMES = 5  # the VM's reserve of zeroed frames is empty
NEED_PAGE = 6  # PPN exit_ppn must be brought back, or unshared if exit_write
MISCONFIGURED = 7  # a nested entry breaks the format: corruption inside, the VM must end
PROCESSOR_STATUSES = 16
