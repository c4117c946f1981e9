# SPDX-License-Identifier: Apache-2.0
"""No module imports itself through others, for the type checker alone neither.

The floors between folders are import-linter's (pyproject.toml); this is about what is inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grimp


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
