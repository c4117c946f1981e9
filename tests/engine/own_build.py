# SPDX-License-Identifier: Apache-2.0
"""Marks tests of what memvirt's own build of the engine alone does, or does right."""

from __future__ import annotations

import pytest

from memvirt.cpu.unicorn.own_build import IS_OWN_BUILD

own_build_only = pytest.mark.skipif(
    not IS_OWN_BUILD, reason="the package index's build of the engine does this otherwise"
)
