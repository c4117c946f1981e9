# SPDX-License-Identifier: Apache-2.0
"""Which build of the engine memvirt runs on: its own, or the package index's wheel.

memvirt's own build (``engine/build.py``, docs/engine.md) lies in the user's cache under a digest of
everything it was made from, so a checkout never runs on the build of another state. The Python
binding loads the library that ``LIBUNICORN_PATH`` names; ``choose_engine`` sets it, which must
happen before ``unicorn`` is imported, and therefore happens in this package's ``__init__``.

Nothing is imported here but the standard library: the build script loads this file by its path.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ENGINE_VERSION = "2.1.4"
SOURCE_FOLDER = f"unicorn-{ENGINE_VERSION}"
SOURCE_ARCHIVE = f"{SOURCE_FOLDER}.tar.gz"
SOURCE_SHA256 = "00567a70e323f749b419cd86bee4f9115beab7ebba32194581c090cbb7c59cff"
LIBRARY_NAME = "libunicorn.so.2"

# MEMVIRT_ENGINE=wheel runs on the package index's build; =own insists on memvirt's own.
_CHOICE_VARIABLE = "MEMVIRT_ENGINE"
_CHOICES = ("", "own", "wheel")
_PATH_VARIABLE = "LIBUNICORN_PATH"

# What the package index's build lacks, for people to read.
FALLBACK_LACKS = "slower, and hides from the guest what it executes wrongly (docs/engine.md)"


class EngineChoiceError(RuntimeError):
    """``MEMVIRT_ENGINE`` asks for an engine that is not there."""


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """The engine that is used.

    ``own``: memvirt's build. ``digest``: of its sources and changes, "" for the wheel. ``folder``:
    where the library lies, None for the wheel's own place. ``problem``: why no processor may be
    made, "" if all is well.
    """

    own: bool
    digest: str
    folder: Path | None
    problem: str = ""

    def __str__(self) -> str:
        if self.own:
            return f"unicorn {ENGINE_VERSION}, memvirt's build {self.digest}"
        return f"unicorn {ENGINE_VERSION} as on the package index: {FALLBACK_LACKS}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; "" if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _recipe_folder() -> Path | None:
    """The folder with our changes: in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_engine", package.parents[1] / "engine"):
        if (folder / "changes").is_dir():
            return folder
    return None


def engine_digest() -> str:
    """A digest of all that memvirt's build is made from; "" where the changes are not at hand."""
    folder = _recipe_folder()
    if folder is None:
        return ""
    state = hashlib.sha256(SOURCE_SHA256.encode())
    parts = [*folder.glob("changes/*.toml"), *folder.glob("source/*"), folder / "build.py"]
    for path in sorted(parts):
        state.update(path.name.encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:12]


def engine_folder() -> Path:
    """Where memvirt's build for these changes lies, or would lie (``XDG_CACHE_HOME``)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "memvirt-engine" / engine_digest()


def find_engine() -> EngineBuild:
    """The engine to use. Raises EngineChoiceError if ``MEMVIRT_ENGINE`` cannot be obeyed."""
    choice = os.environ.get(_CHOICE_VARIABLE, "")
    if choice not in _CHOICES:
        raise EngineChoiceError(f"{_CHOICE_VARIABLE}={choice}: it may be own or wheel")
    digest = engine_digest()
    folder = engine_folder()
    there = bool(digest) and (folder / LIBRARY_NAME).exists()
    if choice == "own" and not there:
        raise EngineChoiceError(
            f"{_CHOICE_VARIABLE}=own, but {folder / LIBRARY_NAME} does not exist: run make engine"
        )
    if there and choice != "wheel":
        return EngineBuild(True, digest, folder)
    return EngineBuild(False, "", None)


def choose_engine() -> EngineBuild:
    """Make the binding load the engine of ``find_engine``. Call before importing ``unicorn``.

    A ``LIBUNICORN_PATH`` of the user's own is left alone: then that library is used, if its layout
    is the one memvirt knows; so is an engine that the program has loaded already. Raises nothing,
    so that memvirt can be imported: a choice that cannot be obeyed is ``problem``.
    """
    try:
        build = find_engine()
    except EngineChoiceError as error:
        return EngineBuild(False, "", None, str(error))
    given = os.environ.get(_PATH_VARIABLE)
    ours = given is not None and Path(given).parent.name == "memvirt-engine"
    if given is not None and not ours:
        return EngineBuild(False, "", Path(given))
    if build.own and "unicorn" in sys.modules and Path(given or "") != build.folder:
        too_late = f"{_CHOICE_VARIABLE}=own, but unicorn was imported before memvirt.cpu.unicorn"
        insists = os.environ.get(_CHOICE_VARIABLE) == "own"
        return EngineBuild(False, "", None, too_late if insists else "")
    if build.folder is not None:
        os.environ[_PATH_VARIABLE] = str(build.folder)
    else:
        os.environ.pop(_PATH_VARIABLE, None)
    return build
