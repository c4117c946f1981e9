# SPDX-License-Identifier: Apache-2.0
"""Boot protocols: from an image file to the segments and registers a guest starts with.

Nothing here touches guest memory. A loader returns a ``BootImage``; whoever owns the guest copies
its segments into memory that is otherwise zero and sets the registers.
"""
