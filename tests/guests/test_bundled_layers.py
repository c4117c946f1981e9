# SPDX-License-Identifier: Apache-2.0
"""The bundled guest's kernel: calls between its modules run one way."""

from __future__ import annotations

import graphlib
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

SOURCES = Path(__file__).resolve().parents[2] / "guests" / "bundled"


def symbols_of(path: Path) -> tuple[set[str], set[str]]:
    """Names an object file defines for others, and names it needs from others."""
    defined, needed = set(), set()
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):  # data alone
            return defined, needed
        for symbol in table.iter_symbols():
            if symbol.name and symbol["st_info"]["bind"] == "STB_GLOBAL":
                (needed if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
    return defined, needed


def module_of(path: Path, root: Path) -> str:
    """C and assembly of one name are one module (``interrupts``)."""
    return str(path.relative_to(root)).split(".", maxsplit=1)[0]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_no_module_calls_one_above_it(tmp_path: Path) -> None:
    sources = tmp_path / "bundled"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("build"))
    subprocess.run(["make", "-C", sources, "all"], capture_output=True, check=True)
    root = sources / "build" / "kernel"
    home: dict[str, str] = {}
    needs: dict[str, set[str]] = defaultdict(set)
    for path in sorted(root.rglob("*.o")):
        module = module_of(path, root)
        defined, needed = symbols_of(path)
        home |= dict.fromkeys(defined, module)
        needs[module] |= needed
    graph = {
        module: {home[name] for name in names if name in home} - {module}
        for module, names in needs.items()
    }
    assert len(graph) > 20
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names a circle
    assert order.index("kernel/physical") < order.index("kernel/balloon")
