# SPDX-License-Identifier: Apache-2.0
"""What is read for a user is a regular file of bounded size, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memvirt.input_file import InputFileError, check_input, read_input, read_input_text
from memvirt.observe.record import RecordError, read_record
from memvirt.plan.dumps.detect import open_dump
from memvirt.plan.dumps.dump import DumpError
from memvirt.plan.findings import PlanDataError
from memvirt.plan.readers.detect import read_files
from memvirt.platform.boot.detect import load_boot_image
from memvirt.platform.boot.image import BootError
from memvirt.scenario.scenario import ScenarioError, load_scenario


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\ufeffä".encode())
    assert read_input(path, most=5) == "\ufeffä".encode()
    assert read_input_text(path) == "ä"
    check_input(path, most=5)
    with pytest.raises(InputFileError, match=r"file: has 5 B; at most 4 B are read"):
        read_input(path, most=4)
    path.write_bytes(b"\xff")
    with pytest.raises(InputFileError, match=r"file: not UTF-8 text"):
        read_input_text(path)


def test_a_file_that_does_not_say_its_size_is_bounded_too() -> None:
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(InputFileError, match="more than 10 B"):
        read_input("/proc/self/maps", most=10)


_REFUSALS = (ScenarioError, BootError, PlanDataError, DumpError, RecordError)


@pytest.mark.parametrize("what", ["scenario", "image", "initrd", "measurements", "dump", "record"])
@pytest.mark.parametrize("source", ["pipe", "/dev/zero", ".", "none", "a\0b", "\ud800"])
def test_what_is_no_regular_file_is_refused_by_every_reader(
    what: str, source: str, tmp_path: Path
) -> None:
    """None of them waits for a pipe, or reads a device without end."""
    os.mkfifo(tmp_path / "pipe")
    path = Path(source) if source.startswith("/") else tmp_path / source
    with pytest.raises(_REFUSALS) as raised:  # noqa: PT012
        if what == "scenario":
            load_scenario(path)
        elif what == "image":
            load_boot_image(path, memory_bytes=4 << 20)
        elif what == "initrd":
            load_boot_image(b"\xf4", memory_bytes=4 << 20, initrd=path)
        elif what == "dump":
            open_dump(path)
        elif what == "record":
            read_record(path)
        else:
            read_files([path])
    assert str(raised.value).isprintable()
