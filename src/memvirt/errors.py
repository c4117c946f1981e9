# SPDX-License-Identifier: Apache-2.0
"""The root of memvirt's own errors: what a caller asked for cannot be done, and what would be."""

from __future__ import annotations


class MemvirtError(Exception):
    """A request that cannot be carried out, for a reason that whoever made it can change.

    Its text is one line: it names the file, field or address, and what would be right. The command
    line prints it and ends with status 2. Errors that a fault inside memvirt causes are not of this
    class.
    """
