# SPDX-License-Identifier: Apache-2.0
"""The key of the compiled cache covers every source a kernel is made from."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import memvirt
from memvirt import compiled_cache

# Modules below the kernels in which nothing is compiled, nor a constant of compiled code is.
NO_KERNELS = {"compiled_cache", "errors", "input_file", "names", "notebook", "size"}
ROOT = Path(memvirt.__file__).parent


def test_kernels_are_defined_only_where_the_cache_key_looks() -> None:
    outside = [
        path
        for path in ROOT.rglob("*.py")
        if not any(path.is_relative_to(ROOT / name) for name in compiled_cache._COMPILED)
        and path.name != "compiled_cache.py"
    ]
    assert outside
    for path in outside:
        assert not re.search(r"@(compiled|callback|njit|cfunc|intrinsic|jit)", path.read_text()), (
            path
        )


def test_compiled_packages_import_nothing_the_key_does_not_cover() -> None:
    allowed = {Path(name).stem for name in compiled_cache._COMPILED}
    for name in compiled_cache._COMPILED:
        for path in (ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name]:
            for package in re.findall(r"^from memvirt\.(\w+)", path.read_text(), re.MULTILINE):
                assert package in allowed | NO_KERNELS, path


def test_kernels_name_the_types_they_take_and_return() -> None:
    kernels, untyped = 0, []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any(re.match("compiled", ast.unparse(mark)) for mark in node.decorator_list):
                continue
            kernels += 1
            types = [node.returns, *(argument.annotation for argument in node.args.args)]
            if any(each is None or ast.unparse(each) == "Any" for each in types):
                untyped.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert kernels > 250
    assert untyped == []
