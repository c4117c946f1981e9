# SPDX-License-Identifier: Apache-2.0
"""The committed guest images: they come from the sources beside them, and QEMU runs them well."""

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "src" / "memvirt" / "images"
BUNDLED = IMAGES / "memvirt-guest.elf"
MULTIBOOT32 = IMAGES / "multiboot32.elf"
WORKLOADS = (
    "all",
    "fill",
    "random",
    "identical",
    "processes",
    "churn",
    "faults",
    "selfmod",
    "idle",
)
QEMU_SUCCESS = 0x10 << 1 | 1  # isa-debug-exit's way of passing the value on
QEMU_FAILURE = 0x11 << 1 | 1

qemu = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(qemu is None, reason="qemu-system-x86_64 is not installed")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("guest", ["bundled", "multiboot32"])
def test_image_is_what_its_sources_build(guest: str, tmp_path: Path) -> None:
    """The build tree is copied, so that an identical image also shows that no path gets in."""
    sources = tmp_path / "guests" / guest
    shutil.copytree(
        ROOT / "guests" / guest, sources, ignore=shutil.ignore_patterns("build"), symlinks=True
    )
    image = MULTIBOOT32 if guest == "multiboot32" else BUNDLED
    check = subprocess.run(
        ["make", "-C", str(sources), "check", f"IMAGE={image}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_file_is_one_contiguous_image_of_memory() -> None:
    """The Multiboot address fields describe one block: file offset and address move together."""
    with BUNDLED.open("rb") as file:
        segments = [s for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"]
    assert segments[0]["p_paddr"] == 0x100000
    assert len({s["p_paddr"] - s["p_offset"] for s in segments}) == 1
    assert all(s["p_filesz"] == s["p_memsz"] for s in segments[:-1])


def run_qemu(
    image: Path, command_line: str = "", *, memory: str = "64M", cpu: str = "qemu64"
) -> tuple[int, str]:
    assert qemu is not None
    run = subprocess.run(
        [
            *(qemu, "-accel", "tcg", "-cpu", cpu, "-m", memory),
            *("-kernel", str(image), "-append", command_line),
            *("-serial", "stdio", "-display", "none", "-no-reboot"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout.replace("\r\n", "\n")


@pytest.mark.qemu
@needs_qemu
@pytest.mark.parametrize("workload", WORKLOADS)
def test_workload_succeeds_under_qemu(workload: str) -> None:
    status, text = run_qemu(BUNDLED, f"workload={workload}")
    assert status == QEMU_SUCCESS, text
    assert text.endswith("memvirt-guest: verdict: success\n")
    assert text.count("verdict:") == 1


@pytest.mark.qemu
@needs_qemu
@pytest.mark.parametrize("memory", ["4M", "8M", "256M"])
def test_memory_sizes(memory: str) -> None:
    status, text = run_qemu(BUNDLED, "passes=1 operations=100000 rounds=4", memory=memory)
    assert status == QEMU_SUCCESS, text


@pytest.mark.qemu
@needs_qemu
def test_output_does_not_depend_on_time_or_processor() -> None:
    command_line = "workload=all percent=10 rounds=5 operations=100000"
    outputs = {run_qemu(BUNDLED, command_line, cpu=cpu) for cpu in ("qemu64", "max", "max")}
    assert len(outputs) == 1


@pytest.mark.qemu
@needs_qemu
def test_panic_reports_failure() -> None:
    status, text = run_qemu(BUNDLED, "workload=panic")
    assert status == QEMU_FAILURE
    assert "memvirt-guest: verdict: failure: panic asked for" in text


@pytest.mark.qemu
@needs_qemu
def test_triple_fault_ends_without_a_verdict() -> None:
    status, text = run_qemu(BUNDLED, "workload=triple")
    assert status == 0  # -no-reboot: QEMU exits where the machine would have been reset
    assert "verdict" not in text


@pytest.mark.qemu
@needs_qemu
@pytest.mark.parametrize("cpu", ["qemu64", "max"])
def test_multiboot32_succeeds_under_qemu(cpu: str) -> None:
    status, text = run_qemu(MULTIBOOT32, cpu=cpu)
    assert status == QEMU_SUCCESS, text
    assert text.endswith("multiboot32: verdict: success\n")
