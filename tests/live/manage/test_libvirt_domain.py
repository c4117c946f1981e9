# SPDX-License-Identifier: Apache-2.0
"""One domain of libvirt, managed by ``setmem``; libvirt itself is a private one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .libvirt_session import PLACES

pytestmark = [pytest.mark.qemu, pytest.mark.acceptance]
ROOT = Path(__file__).parents[3]
DEBIAN = Path("/usr/lib/python3/dist-packages")


@pytest.fixture
def bindings(tmp_path: Path) -> Path:
    """A directory with libvirt's bindings; Debian's serve if they are for this Python."""
    directory = tmp_path / "bindings"
    directory.mkdir()
    if importlib.util.find_spec("libvirt") is None:
        tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-x86_64-linux-gnu"
        parts = [*DEBIAN.glob("libvirt*.py"), *DEBIAN.glob(f"libvirtmod*.{tag}.so")]
        if not any(part.suffix == ".so" for part in parts):
            pytest.skip("libvirt's Python bindings are not installed")
        for part in parts:
            (directory / part.name).symlink_to(part)
    return directory


@pytest.mark.usefixtures("needs_root", "ledger_directory")
def test_a_domain_is_managed_and_libvirt_knows(
    verifying_guest: tuple[Path, Path], bindings: Path, tmp_path: Path
) -> None:
    for tool in ("libvirtd", "virsh", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not all(Path(place).is_dir() for place in PLACES):
        pytest.skip("libvirt's directories are not there")
    directory = tmp_path / "libvirt"
    directory.mkdir()
    kernel, initrd = verifying_guest
    path = os.pathsep.join([str(bindings), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-m", "tests.live.manage.libvirt_session",
         directory, kernel, initrd],
        env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is as it was" in done.stdout
