# SPDX-License-Identifier: Apache-2.0
"""The verifying guest, VMs of it, pagers; everything is ended also when a test fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memvirt.live.pager.attachment import PagerError
from memvirt.live.pager.collisions import refuse_kernel
from memvirt.live.pager.session import StoreOptions
from memvirt.live.pager.supervisor import Policy

from .qemu_guest import MODULES, PagerProcess, VerifyingVm

_ROOT = Path(__file__).parents[3]
_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def needs_userfaultfd() -> None:
    """Skips where the kernel or the rights do not suffice, and names what is missing."""
    try:
        refuse_kernel()
    except PagerError as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("paging another process needs root (CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE)")


def make_verifying_guest(made: Path) -> tuple[Path, Path]:
    """Paths of Debian's kernel and of the initramfs, which is made in ``made``."""
    build = _ROOT / "build" / "linux-guest"
    if not (build / "vmlinuz").exists():
        subprocess.run([_ROOT / "guests/linux/build.sh"], check=True, capture_output=True)
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
    subprocess.run([*command, "-o", made / "init", _HERE / "guest/verify.c"], check=True)
    drivers = next((build / "packages/lib/modules").glob("*/kernel/drivers"))
    items = [f"{Path(name).name}.ko={drivers / name}.ko" for name in MODULES]
    initrd = made / "initrd.img"
    archive = _ROOT / "guests/linux/initramfs.py"
    subprocess.run(["python3", archive, initrd, f"init={made / 'init'}", *items], check=True)
    return build / "vmlinuz", initrd


@pytest.fixture(scope="session")
def verifying_guest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Debian's kernel, and an initramfs with ``guest/verify.c`` as its init."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (make packages)")
    return make_verifying_guest(tmp_path_factory.mktemp("verifying-guest"))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    directory = tmp_path / "runtime"
    monkeypatch.setenv("MEMVIRT_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def start_vm(
    needs_userfaultfd: None, verifying_guest: tuple[Path, Path], tmp_path: Path, runtime: Path
) -> Iterator[Callable[..., VerifyingVm]]:
    """Starts VMs (keyword arguments of VerifyingVm) and waits until their guests are ready."""
    vms: list[VerifyingVm] = []

    def start(**options: object) -> VerifyingVm:
        directory = tmp_path / f"vm{len(vms)}"
        directory.mkdir()
        vm = VerifyingVm(directory, *verifying_guest, **options)  # type: ignore[arg-type]
        vms.append(vm)
        vm.wait_until_ready()
        return vm

    yield start
    for vm in vms:
        vm.kill()


@pytest.fixture
def start_pager(tmp_path: Path) -> Iterator[Callable[..., PagerProcess]]:
    """Starts pagers: of a VM, with a policy, and a store (``tmp_path``/store by default)."""
    pagers: list[PagerProcess] = []

    def start(
        vm: VerifyingVm,
        policy: Policy,
        *,
        store: StoreOptions | None = None,
        again: bool = False,
    ) -> PagerProcess:
        options = store or StoreOptions(tmp_path / "store")
        log = tmp_path / f"pager{len(pagers)}.log"
        pager = PagerProcess(vm, options, policy, log, again=again)
        pagers.append(pager)
        return pager

    yield start
    for pager in pagers:
        with contextlib.suppress(AssertionError):
            pager.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", mount], check=False)
    if made.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted (CAP_SYS_ADMIN)")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)
