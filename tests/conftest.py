# SPDX-License-Identifier: Apache-2.0
"""Choose the engine's build before any test imports ``unicorn``, which loads one for good."""

from __future__ import annotations

import memvirt.cpu.unicorn  # noqa: F401
