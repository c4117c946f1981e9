# SPDX-License-Identifier: Apache-2.0
"""docs/api.md is what is public: nothing missing on either side; examples run."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "memvirt"
# They pass names of other modules on, inside their own package.
NOT_PUBLIC = {"memvirt.plan.policy", "memvirt.plan.readers.tables"}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API = _load()


def _with_all() -> set[str]:
    """Modules that say what they offer."""
    found = set()
    for path in SOURCES.rglob("*.py"):
        if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE):
            parts = path.relative_to(SOURCES.parent).with_suffix("").parts
            found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_the_page_is_up_to_date() -> None:
    assert API.PAGE.read_text(encoding="utf-8") == API.page(), "run make docs"


def test_page_and_all_name_the_same_modules() -> None:
    assert set(API.modules()) == _with_all() - NOT_PUBLIC


@pytest.mark.parametrize("name", API.modules())
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    module = import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            assert text, f"{name}.{public}"
            assert not text.startswith(f"{public}("), f"{name}.{public}: made by dataclass"
        assert API.meaning(name, public)


@pytest.mark.parametrize("title", API.examples())
def test_an_example_runs(title: str) -> None:
    code = API.examples()[title]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for said in re.findall(r"# (\S+)$", code, re.MULTILINE):
        assert said in done.stdout.split(), done.stdout
