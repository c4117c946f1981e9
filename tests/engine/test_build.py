# SPDX-License-Identifier: Apache-2.0
"""The changes to the engine are well formed; which engine is used is the user's choice."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numba
import pytest

from memvirt.cpu.unicorn import library

ROOT = Path(__file__).parents[2]
CHANGES = sorted((ROOT / "engine" / "changes").glob("*.toml"))


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("engine_build", ROOT / "engine" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CHANGES, ids=lambda path: path.stem)
def test_a_change_says_why_and_what_proves_it(path: Path) -> None:
    change = tomllib.loads(path.read_text())
    assert change.keys() <= {"title", "reason", "upstream", "tests", "file", "edit"}
    assert change["title"]
    assert change["reason"].strip()
    assert (ROOT / change["tests"]).exists()
    for file in change.get("file", ()):
        assert (ROOT / "engine" / "source" / file["source"]).exists()


_TEXT = "void f(void)\n{\n    one();\n    two();\n}\n\nvoid g(void)\n{\n    one();\n}\n"


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        ({"after": "two();", "text": "    x();"}, "    two();\n    x();\n}"),
        ({"before": "two();", "text": "    x();\n"}, "    x();\n    two();\n}"),
        ({"replace": "two();", "lines": 1, "text": ""}, "    one();\n}\n\nvoid g"),
        (
            {"within": "void g(void)", "replace": "one();", "lines": 2, "text": "\n}"},
            "void g(void)\n{\n}\n",
        ),
    ],
)
def test_an_edit(build: Any, edit: dict[str, Any], wanted: str) -> None:
    assert wanted in build.apply_edit(_TEXT, {"file": "f.c", **edit}, "here")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"after": "one();", "text": ""}, "occurs 2 times"),
        ({"after": "three();", "text": ""}, "occurs 0 times"),
        ({"within": "void g(void)", "after": "two();", "text": ""}, "is not in the file"),
        ({"within": "void h(void)", "after": "two();", "text": ""}, "occurs 0 times"),
        ({"after": "two();", "before": "two();", "text": ""}, "one of after, before, replace"),
        ({"after": "two();", "text": "", "line": 1}, "unknown: {'line'}"),
    ],
)
def test_an_edit_that_does_not_fit(build: Any, edit: dict[str, Any], message: str) -> None:
    with pytest.raises(build.BuildError, match=message):
        build.apply_edit(_TEXT, {"file": "f.c", **edit}, "here")


def test_the_digest_follows_the_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("changes", "source"):
        (tmp_path / folder).mkdir()
    (tmp_path / "build.py").write_text("")
    change = tmp_path / "changes" / "01.toml"
    change.write_text("a")
    monkeypatch.setattr(library, "_recipe_folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MEMVIRT_ENGINE", raising=False)
    first = library.engine_digest()
    assert library.engine_folder().name == first
    assert not library.find_engine().own
    change.write_text("b")
    assert library.engine_digest() != first
    (library.engine_folder()).mkdir(parents=True)
    (library.engine_folder() / library.LIBRARY_NAME).touch()
    assert library.find_engine().own
    monkeypatch.setenv("MEMVIRT_ENGINE", "wheel")
    assert not library.find_engine().own


@pytest.mark.parametrize("choice", ["own", "mine"])
def test_a_choice_that_cannot_be_obeyed(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MEMVIRT_ENGINE", choice)
    with pytest.raises(library.EngineChoiceError, match=f"MEMVIRT_ENGINE={choice}"):
        library.find_engine()


@pytest.mark.parametrize("command", [["--version"], ["boot", "bundled"]])
def test_such_a_choice_is_one_line_before_anything_is_compiled(
    command: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memvirt", *command],
        env=os.environ | {"MEMVIRT_ENGINE": "mine", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "MEMVIRT_ENGINE=mine" in done.stderr
    assert "Traceback" not in done.stderr
    assert "compiling for this machine, once" not in done.stderr


_UNICORN_FIRST = """
import unicorn
from memvirt import Machine, MemvirtError, VirtualMachine
try:
    VirtualMachine(Machine("8M"), memory="1M")
except MemvirtError as error:
    print(error)
"""


def test_a_program_that_has_loaded_unicorn_already(tmp_path: Path) -> None:
    """Its library stays; who insists on memvirt's own build is told."""
    (tmp_path / "memvirt-engine" / library.engine_digest()).mkdir(parents=True)
    engine = tmp_path / "memvirt-engine" / library.engine_digest() / library.LIBRARY_NAME
    engine.write_text("never loaded")
    cache = os.environ.get("NUMBA_CACHE_DIR") or numba.config.CACHE_DIR
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": str(cache)}
    environment.pop("LIBUNICORN_PATH", None)
    for choice, said in (("own", "unicorn was imported before memvirt.cpu.unicorn"), ("", "")):
        done = subprocess.run(
            [sys.executable, "-c", _UNICORN_FIRST],
            env=environment | {"MEMVIRT_ENGINE": choice},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert said in done.stdout
        assert bool(done.stdout) is bool(said)


def test_version_names_the_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memvirt", "--version"],
        env=os.environ | {"MEMVIRT_ENGINE": "wheel"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"unicorn {library.ENGINE_VERSION} as on the package index" in done.stdout
