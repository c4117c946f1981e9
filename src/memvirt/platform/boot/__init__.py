# SPDX-License-Identifier: Apache-2.0
"""Boot protocols: from an image file to the segments and registers a guest starts with.

Nothing here touches guest memory. A loader returns a ``BootImage``; whoever owns the guest copies
its segments into memory that is otherwise zero and sets the registers.
"""

from memvirt.platform.boot.detect import Protocol, load_boot_image
from memvirt.platform.boot.image import (
    BootError,
    BootImage,
    E820Entry,
    E820Type,
    InitialState,
    Segment,
    StartMode,
    memory_map,
)

__all__ = [
    "BootError",
    "BootImage",
    "E820Entry",
    "E820Type",
    "InitialState",
    "Protocol",
    "Segment",
    "StartMode",
    "load_boot_image",
    "memory_map",
]
