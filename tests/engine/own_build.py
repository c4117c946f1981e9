# SPDX-License-Identifier: Apache-2.0
"""Marks tests of what only memvirt's own build of the engine does right."""

from __future__ import annotations

import pytest

from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD

own_build_only = pytest.mark.skipif(
    not IS_OWN_BUILD, reason="the package index's build of the engine does this wrongly"
)
