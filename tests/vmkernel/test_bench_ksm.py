# SPDX-License-Identifier: Apache-2.0
"""The bench beside KSM leaves its settings as it found them, however it ends; here on files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import page_sharing

FOUND = {
    "run": "0\n",
    "sleep_millisecs": "20\n",
    "pages_to_scan": "100\n",
    "smart_scan": "1\n",
    "advisor_mode": "none [scan-time]\n",
}
LEFT = {"run": "0", "sleep_millisecs": "20", "pages_to_scan": "100", "smart_scan": "1"}


@pytest.fixture
def ksm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FOUND.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(page_sharing, "_KSM", tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield tmp_path
    now = {path.name: path.read_text().strip() for path in tmp_path.iterdir() if path.is_file()}
    assert now == LEFT | {"advisor_mode": "scan-time"}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_at_its_end(ksm: Path) -> None:
    with page_sharing.ksm_flat_out():
        assert (ksm / "sleep_millisecs").read_text() == "0"
        (ksm / "run").write_text("1")


def test_after_an_error(ksm: Path) -> None:
    with pytest.raises(OSError, match="no thread"), page_sharing.ksm_flat_out():
        raise OSError("no thread")


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_after_a_signal(ksm: Path, number: int, end: type[BaseException]) -> None:
    def twice() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # by somebody impatient

    with pytest.raises(end), page_sharing.ksm_flat_out():
        twice()


def test_though_one_of_them_cannot_be_written(ksm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def refusing(path: Path, text: str) -> int:
        if path.name == "run" and text == "2":
            raise OSError("interrupted")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refusing)
    with pytest.raises(OSError, match="interrupted"), page_sharing.ksm_flat_out():
        pass
