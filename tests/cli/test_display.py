# SPDX-License-Identifier: Apache-2.0
"""``memvirt boot --display text``: drawn on a terminal, text at the end, and nothing raw."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests.test_display import SOURCE
from tests.small_guest import small_guest

_FIRST = "FFF"  # the first row shown, after scrolling by five
_LAST = "^^^←[2J]0;title"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "screen.bin"
    path.write_bytes(small_guest(SOURCE))
    return path


def test_the_final_screen_is_text(image: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "screen.snapshot"
    done = subprocess.run(
        [sys.executable, "-m", "memvirt", "boot", image, "--memory", "16M", "--display", "text",
         "--snapshot", snapshot],
        capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"--- display, 80 x 25, cursor in row 25, column {len(_LAST) + 1}"
    assert (lines[1], lines[-1], len(lines)) == (_FIRST, _LAST, 26)
    assert "\x1b" not in done.stdout
    again = subprocess.run(
        [sys.executable, "-m", "memvirt", "display", snapshot],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_on_a_terminal_it_is_drawn_in_colours_and_left_as_it_was(image: Path) -> None:
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    command = [
        sys.executable, "-m", "memvirt", "boot", image, "--memory", "16M", "--display", "text",
    ]  # fmt: skip
    text = b""
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    ) as process:
        try:
            while process.poll() is None or select.select([master], [], [], 0)[0]:
                if select.select([master], [], [], 0.1)[0]:
                    text += os.read(master, 65536)
        finally:
            process.kill()
    os.close(master)
    os.close(slave)
    said = text.decode()
    assert process.returncode == 0, said
    entered, left = said.index("\x1b[?1049h"), said.index("\x1b[?1049l")
    assert entered < left
    assert "\x1b[2J]0;title" not in said  # the guest's own escape is a glyph
    drawn, after = said[entered:left], said[left:]
    assert re.search(r"\x1b\[[0-9;]*m" + _FIRST, drawn)
    assert _LAST in after
    assert "the guest reports success" in after


# Waits for a key at the 8042 and ends with its scan code.
_KEY_READER = """
test:   movw $0x1F3F, 0xB8000           # a question mark
1:      in $0x64, %al
        test $1, %al
        jz 1b
        in $0x60, %al
        jmp end
"""


def test_keys_typed_at_a_drawn_screen_are_the_keyboards(tmp_path: Path) -> None:
    image = tmp_path / "keys.bin"
    image.write_bytes(small_guest(_KEY_READER))
    master, slave = pty.openpty()
    command = [
        sys.executable, "-m", "memvirt", "boot", image, "--memory", "16M", "--display", "text",
        "--success-code", "0x1e", "--timeout", "300",
    ]  # fmt: skip
    text = b""
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    ) as process:  # fmt: skip
        try:
            typed = False
            while process.poll() is None or select.select([master], [], [], 0)[0]:
                if select.select([master], [], [], 0.1)[0]:
                    text += os.read(master, 65536)
                if not typed and b"\x1b[?1049h" in text:
                    os.write(master, b"a")
                    typed = True
        finally:
            process.kill()
    os.close(master)
    os.close(slave)
    assert process.returncode == 0, text.decode()
    assert "exit value 0x1e" in text.decode()
