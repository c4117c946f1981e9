# SPDX-License-Identifier: Apache-2.0
"""docs/api.md is what is public: nothing missing on either side; examples run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

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


_PROTOCOLS = [
    value for value in vars(import_module("memvirt.vmkernel.protocols")).values()
    if getattr(value, "_is_protocol", False)
]  # fmt: skip
PROTOCOL_MEMBERS = {member for protocol in _PROTOCOLS for member in vars(protocol)}


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that the class itself defines."""
    for name, member in vars(value).items():
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def _raised(function: Any) -> set[str]:
    """Names of the exceptions that its own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    called = [error.func if isinstance(error, ast.Call) else error for error in found]
    return {error.id for error in called if isinstance(error, ast.Name) and error.id[0].isupper()}


@pytest.mark.parametrize("name", API.modules())
def test_every_public_member_says_what_it_is_and_what_it_raises(name: str) -> None:
    """What implements a protocol of the VMkernel may leave the words to it."""
    module = import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value):
            members, about = [(public, value)], ""
        elif inspect.isclass(value):
            members, about = list(_members(value)), inspect.getdoc(value) or ""
        else:
            continue
        for member, function in members:
            text = inspect.getdoc(function) or ""
            where = f"{value.__module__}.{value.__qualname__}: {member}"
            assert text or member in PROTOCOL_MEMBERS, where
            unnamed = {error for error in _raised(function) if error not in text + about}
            assert not unnamed, f"{where} raises {unnamed}"


@pytest.mark.parametrize("title", API.examples())
def test_an_example_runs(title: str) -> None:
    code = API.examples()[title]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for said in re.findall(r"# (\S+)$", code, re.MULTILINE):
        assert said in done.stdout.split(), done.stdout
