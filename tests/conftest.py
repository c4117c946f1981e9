# SPDX-License-Identifier: Apache-2.0
"""Choose the engine's build before any test imports ``unicorn``, which loads one for good."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

import memvirt.cpu.unicorn  # noqa: F401

# No test's outcome may depend on how busy the machine is.
settings.register_profile("memvirt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memvirt")
