# SPDX-License-Identifier: Apache-2.0
"""``memvirt warm``."""

from __future__ import annotations

from .errors import user_errors


def warm_command() -> None:
    """Compile for this machine now, so that later commands start at once (images, containers)."""
    with user_errors():
        from memvirt.compiled_cache import cache_folder  # noqa: PLC0415

        from .warm import warm  # noqa: PLC0415

        seconds = warm()
        print(f"compiled in {seconds:.1f} s" if seconds else "nothing to compile", end="")
        print(f", kept in {cache_folder()}" if cache_folder() else "; no cache can be written")
