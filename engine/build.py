#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build memvirt's engine: Unicorn's pinned source distribution with our changes, for x86 alone.

Needs a C compiler. cmake and a build tool are taken from the path, else from the package index. The
sources come from the package index through pip, which checks their hash; the library goes to the
user's cache, where memvirt looks for it (``memvirt/cpu/unicorn/library.py``). See docs/engine.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DUNICORN_ARCH=x86",
    "-DUNICORN_BUILD_TESTS=OFF",
    "-DUNICORN_INSTALL=OFF",
    "-DUNICORN_LEGACY_STATIC_ARCHIVE=OFF",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_C_FLAGS=-Werror=implicit-function-declaration",
    "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-z,defs",  # what is not defined fails here, not in a guest
)
_EDIT_KEYS = {"file", "within", "after", "before", "replace", "lines", "text"}


class BuildError(Exception):
    """The engine could not be built; the message says what was missing."""


def _load_library_module() -> Any:
    """``memvirt.cpu.unicorn.library`` by its path: importing the package would compile kernels."""
    places = (HERE.parent / "src" / "memvirt", HERE.parent)  # a checkout; an installed wheel
    for place in places:
        path = place / "cpu" / "unicorn" / "library.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("memvirt_engine_library", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            return module
    raise BuildError(f"memvirt's sources are not beside {HERE}")


library = _load_library_module()


def _line_of(text: str, anchor: str, start: int, where: str) -> tuple[int, int]:
    """Begin and end (behind its newline) of the line with ``anchor``, the first after ``start``."""
    at = text.find(anchor, start)
    if at < 0:
        raise BuildError(f"{where}: {anchor!r} is not in the file")
    begin = text.rfind("\n", 0, at) + 1
    return begin, text.index("\n", at) + 1


def apply_edit(text: str, edit: dict[str, Any], where: str) -> str:
    """``text`` with one edit of a change applied.

    ``after``, ``before`` or ``replace`` holds words of one line; they must be unique in the file,
    or the first behind the unique words of ``within``. ``replace`` drops ``lines`` lines.
    Raises BuildError where the words are not found, or are not unique.
    """
    unknown = edit.keys() - _EDIT_KEYS
    kinds = [kind for kind in ("after", "before", "replace") if kind in edit]
    if unknown or len(kinds) != 1:
        raise BuildError(f"{where}: one of after, before, replace is needed; unknown: {unknown}")
    kind = kinds[0]
    anchor, within = edit[kind], edit.get("within")
    unique = within or anchor
    if text.count(unique) != 1:
        raise BuildError(f"{where}: {unique!r} occurs {text.count(unique)} times, not once")
    start = text.index(within) if within else 0
    begin, end = _line_of(text, anchor, start, where)
    new = edit["text"].removeprefix("\n")
    if new and not new.endswith("\n"):
        new += "\n"
    if kind == "after":
        return text[:end] + new + text[end:]
    if kind == "before":
        return text[:begin] + new + text[begin:]
    for _ in range(edit["lines"] - 1):
        end = text.index("\n", end) + 1
    return text[:begin] + new + text[end:]


def apply_changes(tree: Path, original: Path) -> int:
    """Bring ``tree`` to ``original`` with all changes applied; the number of changes.

    Files whose content stays are not touched, so that a second build compiles only what differs.
    """
    texts: dict[str, str] = {}
    changes = sorted((HERE / "changes").glob("*.toml"))
    for path in changes:
        change = tomllib.loads(path.read_text())
        for file in change.get("file", ()):
            texts[file["path"]] = (HERE / "source" / file["source"]).read_text()
        for number, edit in enumerate(change.get("edit", ()), 1):
            name = edit["file"]
            text = texts.get(name) or (original / name).read_text()
            texts[name] = apply_edit(text, edit, f"{path.name}, edit {number} ({name})")
    touched = tree / ".memvirt-changed"
    before = touched.read_text().split("\n") if touched.exists() else []
    for name in before:
        if name and name not in texts:
            _write_if_different(tree / name, (original / name).read_text())
    for name, text in texts.items():
        _write_if_different(tree / name, text)
    touched.write_text("\n".join(texts))
    return len(changes)


def _write_if_different(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _run(command: list[str], log: Path, what: str) -> None:
    with log.open("a") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        raise BuildError(f"{what} failed; the end of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def fetch_sources(work: Path) -> Path:
    """The pinned source distribution in ``work``, its hash checked. Raises BuildError."""
    archive = work / library.SOURCE_ARCHIVE
    if not archive.exists() or library.file_digest(archive) != library.SOURCE_SHA256:
        requirement = work / "requirement.txt"
        requirement.write_text(
            f"unicorn=={library.ENGINE_VERSION} --hash=sha256:{library.SOURCE_SHA256}\n"
        )
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--no-binary", "unicorn", "--dest", str(work), "--requirement"]
        _run([*command, str(requirement)], work / "build.log", "fetching the engine's sources")
    if library.file_digest(archive) != library.SOURCE_SHA256:
        raise BuildError(f"{archive} is not the pinned source distribution: its hash differs")
    return archive


def unpack(work: Path, archive: Path) -> tuple[Path, Path]:
    """(tree to build, original tree), unpacked once."""
    tree, original = work / "tree", work / "original"
    for folder in (tree, original):
        if (folder / ".complete").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=work) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            (Path(temporary) / library.SOURCE_FOLDER / "src").rename(folder)
        (folder / ".complete").touch()
    return tree, original


def check_compiler() -> None:
    """Raise BuildError unless there is a C compiler, with the C library's headers."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    compiler = next((name for name in names if shutil.which(name)), None)
    if compiler is None:
        raise BuildError(f"no C compiler ({', '.join(names)}): install gcc and libc6-dev")
    done = subprocess.run(
        [compiler, "-x", "c", "-fsyntax-only", "-"],
        input="#include <stdlib.h>\n#include <sys/mman.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{compiler} does not find the C library's headers: install libc6-dev")


def find_tools(work: Path) -> tuple[str, list[str]]:
    """cmake, and cmake's arguments for the build tool, from the path or the package index."""
    cmake = shutil.which("cmake")
    ninja, make = shutil.which("ninja"), shutil.which("make")
    if cmake is None or (ninja is None and make is None):
        tools = work / "tools"
        if not (tools / "bin" / "cmake").exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools)]
            _run([*command, "cmake", "ninja"], work / "build.log", "fetching cmake and ninja")
        os.environ["PYTHONPATH"] = str(tools)
        cmake, ninja = str(tools / "bin" / "cmake"), str(tools / "bin" / "ninja")
    if ninja is None:
        return cmake, ["-G", "Unix Makefiles"]
    return cmake, ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def _show_progress(line: str) -> None:
    found = re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line)
    if found and sys.stderr.isatty():
        part = int(found[1]) / int(found[2] or 100)
        bar = "#" * int(part * 30)
        print(f"\rengine: [{bar:<30}] {part:4.0%}", end="", file=sys.stderr, flush=True)


def compile_engine(work: Path, tree: Path) -> Path:
    """Configure and compile ``tree``; the shared library. Raises BuildError."""
    cmake, generator = find_tools(work)
    out, log = work / "out", work / "build.log"
    if not (out / "CMakeCache.txt").exists():
        _run(
            [cmake, "-S", str(tree), "-B", str(out), *generator, *_FLAGS],
            log,
            "configuring the engine",
        )
    command = [cmake, "--build", str(out), "--target", "unicorn", "--parallel"]
    with log.open("a") as output:
        build = subprocess.Popen(
            [*command, str(os.cpu_count() or 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert build.stdout is not None
        for line in build.stdout:
            output.write(line)
            _show_progress(line)
        failed = build.wait() != 0
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if failed:
        raise BuildError(f"compiling the engine failed; the end of {log}:\n{_tail(log)}")
    return out / library.LIBRARY_NAME


def install(built: Path, folder: Path) -> Path:
    """Put the library in place at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    shutil.copyfile(built, name)
    os.chmod(name, 0o755)
    target = folder / library.LIBRARY_NAME
    os.replace(name, target)
    return target


def build(work: Path, *, again: bool = False) -> Path:
    """Build and install the engine, unless it is there; where it is. Raises BuildError."""
    folder = library.engine_folder()
    target = folder / library.LIBRARY_NAME
    if target.exists() and not again:
        print(f"engine: {target} is up to date")
        return target
    check_compiler()
    work.mkdir(parents=True, exist_ok=True)
    print("engine: building, once for these sources (about 20 s on two cores) ...", flush=True)
    tree, original = unpack(work, fetch_sources(work))
    changes = apply_changes(tree, original)
    target = install(compile_engine(work, tree), folder)
    print(f"engine: unicorn {library.ENGINE_VERSION} with {changes} changes: {target}")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Build memvirt's engine.")
    parser.add_argument("--work", type=Path, help="folder to build in (build/engine)")
    parser.add_argument("--again", action="store_true", help="build even if it is up to date")
    parser.add_argument(
        "--if-possible",
        action="store_true",
        help="where it cannot be built, say why and succeed: memvirt runs on the index's wheel",
    )
    arguments = parser.parse_args()
    checkout = (HERE.parent / "pyproject.toml").exists()
    default = HERE.parent / "build" / "engine" if checkout else library.engine_folder() / "build"
    try:
        build(arguments.work or default, again=arguments.again)
    except (BuildError, OSError) as error:
        print(f"engine: not built: {error}", file=sys.stderr)
        if not arguments.if_possible:
            return 1
        print("engine: memvirt will run on the package index's build, slower", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
