# SPDX-License-Identifier: Apache-2.0
"""The software processor: the Unicorn engine. Importing this package chooses the engine's build."""

from .library import choose_engine

ENGINE = choose_engine()  # before any module of this package imports unicorn
