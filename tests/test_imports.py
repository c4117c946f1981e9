# SPDX-License-Identifier: Apache-2.0
"""Modules are short, and none imports itself through others, for the type checker alone neither.

The floors between folders are import-linter's (pyproject.toml); this is about what is inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
MOST_LINES = 400  # a module has one subject; docs/contributing.md


def circles(modules: Iterable[str], imported_by: Callable[[str], Iterable[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches all others of its group (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        path.append(module)
        for other in imported_by(module):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            group = path[path.index(module) :]
            del path[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(modules):
        if module not in index:
            visit(module)
    return found


def test_no_circles() -> None:
    graph = grimp.build_graph("memvirt")
    assert len(graph.modules) > 250
    assert circles(graph.modules, graph.find_modules_directly_imported_by) == []


def test_a_circle_would_be_found() -> None:
    imports = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}
    assert circles(imports, imports.__getitem__) == [["a", "b", "c"]]


def test_names_that_once_meant_several_things_are_one_file_each() -> None:
    names = [path.name for path in (ROOT / "src").rglob("*.py")]
    for name in ("guest_memory.py", "record.py", "control.py", "statistics.py"):
        assert names.count(name) == 1, name


def test_no_module_is_long() -> None:
    modules = [path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    assert len(lines) > 500
    assert [path for path, count in lines.items() if count > MOST_LINES] == []
