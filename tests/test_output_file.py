# SPDX-License-Identifier: Apache-2.0
"""Files for the user: complete or not there, and never in place of a device."""

from __future__ import annotations

import os
import resource
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memvirt.output_file import OutputFile, OutputFileError, check_output, check_outputs


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """What a full disk does: writes beyond ``size`` bytes of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def device(path: Path, minor: int) -> Path:
    """A device node of the test's own: 3 is that of /dev/null, 7 that of /dev/full."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("device nodes cannot be made or opened here")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with OutputFile(target) as file:
        file.write(b"new")
        assert file.tell() == 3
        assert target.read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_leaves_what_was_there(tmp_path: Path, old: bytes | None) -> None:
    target = tmp_path / "out"
    if old is not None:
        target.write_bytes(old)

    def fail() -> None:
        with OutputFile(target) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == ([] if old is None else ["out"])
    assert old is None or target.read_bytes() == old


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def fill() -> None:
        with OutputFile(target) as file:
            for _ in range(100):
                file.write(bytes(4096))

    with no_file_beyond(10_000), pytest.raises(OutputFileError, match=r"out: File too large"):
        fill()
    assert names(tmp_path) == []


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    with OutputFile(null) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(null.stat().st_mode)
    assert names(tmp_path) == ["null"]


def test_what_a_device_refuses_is_one_line(tmp_path: Path) -> None:
    full = device(tmp_path / "full", 7)
    with pytest.raises(OutputFileError, match="full: No space left"), OutputFile(full) as file:
        file.write(b"never")
    assert stat.S_ISCHR(full.stat().st_mode)


def test_a_pipe_gets_all_of_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with OutputFile(pipe) as file:
        file.write(b"x" * 200_000)
    reader.join()
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with OutputFile(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_modes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name, private in (("public", False), ("private", True)):
            with OutputFile(tmp_path / name, private=private) as file:
                file.write(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    (tmp_path / "public").chmod(0o604)
    with OutputFile(tmp_path / "public") as file:
        file.write(b"")
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o604
    (tmp_path / "private").chmod(0o644)
    with OutputFile(tmp_path / "private", private=True) as file:
        file.write(b"")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_what_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "out", "does not exist"),
        (tmp_path / "file" / "out", "Not a directory"),
        (tmp_path / ("n" * 300), "name too long"),
    ):
        with pytest.raises(OutputFileError, match=words) as raised:
            check_output(path)
        assert str(path) in str(raised.value)
    check_output(tmp_path / "file")
    check_output(tmp_path / "new")


def test_no_file_is_written_twice_or_over_an_input(tmp_path: Path) -> None:
    one, link = tmp_path / "one", tmp_path / "link"
    one.write_bytes(b"")
    link.symlink_to(one)
    with pytest.raises(OutputFileError, match="both --a and --b"):
        check_outputs({"--a": one, "--b": link, "--c": None}, {})
    with pytest.raises(OutputFileError, match="both the image and --a"):
        check_outputs({"--a": link}, {"the image": one})
    null = device(tmp_path / "null", 3)
    check_outputs({"--a": null, "--b": null}, {})
