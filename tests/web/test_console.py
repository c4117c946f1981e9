# SPDX-License-Identifier: Apache-2.0
"""Consoles and text screens in the page: what guests print, and what is typed to them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from memvirt.host.host import Host
from memvirt.scenario.scenario import parse_scenario
from memvirt.web.consoles import Consoles
from tests.small_guest import small_guest
from tests.waiting import until

from .conftest import SCREENSHOTS, Opened, Served, opening, serving

# Prints on the VGA, then copies what comes on COM1 to both, without control characters on the VGA.
# A key of the keyboard prints its scan code (set 1) + 0x30 there: w is A, e is B; tab clears it.
ECHO = """
test:   mov     $0xB8000, %rdi
        mov     $text, %rsi
        mov     $0x1F, %ah              # bright white on blue
1:      lodsb
        stosw
        cmpb    $0, (%rsi)
        jne     1b
next:   pause
        in      $0x64, %al
        test    $1, %al
        jz      2f
        in      $0x60, %al
        test    $0x80, %al              # let go
        jnz     2f
        cmp     $0x0F, %al              # tab: all is cleared
        je      clear
        add     $0x30, %al
        stosw
2:      mov     $0x3FD, %edx
        in      %dx, %al
        test    $1, %al
        jz      next
        mov     $0x3F8, %edx
        in      %dx, %al
        out     %al, %dx
        cmp     $0x20, %al
        jb      next
        stosw
        jmp     next
clear:  mov     $0xB8000, %rdi
        mov     $2000, %ecx
        mov     $0x1F20, %ax
        rep stosw
        mov     $0xB8000, %rdi
        jmp     next
text:   .asciz  "ready: "
"""
HALTS = """
test:   mov     $0xFF, %al              # nothing but the console may interrupt
        out     %al, $0xA1
        mov     $0xEF, %al
        out     %al, $0x21
        mov     $0x30, %al              # the timer counts once, and is still
        out     %al, $0x43
        mov     $1, %al
        out     %al, $0x40
        xor     %al, %al
        out     %al, $0x40
        sti
1:      hlt
        jmp     1b
"""
_SCENARIO = """
timeout = 3000
check = false
[machine]
memory = "24M"
quantum_ms = 1
[[vm]]
name = "echo"
image = "{image}"
memory = "8M"
paging = "{paging}"
"""


def _scenario(folder: Path, source: str, paging: str = "nested") -> str:
    image = folder / "guest"
    image.write_bytes(small_guest(source))
    return _SCENARIO.format(image=image, paging=paging)


@pytest.fixture(params=["shadow", "nested"])
def echo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with serving(_scenario(tmp_path, ECHO, request.param)) as served:
        yield served


def _ready(opened: Opened, served: Served) -> None:
    """Run at full speed until the guest has printed that it reads."""
    served.ask(lambda: served.source.control("speed", 20))
    served.ask(lambda: served.source.control("play"))
    opened.until("memvirt.store.parts.get(`screen:${memvirt.store.vm}`)?.[10] === 114")  # an "r"


def test_typing_and_the_text_screen(echo: Served, browser: Browser) -> None:
    """Both show what the guest makes of what is typed; keys of the page are the guest's then."""
    vm = echo.host.vms[0]
    with opening(echo, browser) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        _ready(opened, echo)
        keyboard.press("k")
        keyboard.type("hello <b>there</b>")
        console = page.locator("#console")
        expect(console).to_contain_text("hello <b>there</b>")
        assert opened.js("() => document.querySelectorAll('#console b').length") == 0
        keyboard.press("Enter")
        keyboard.type("t?")  # in the page: the lesson, and the list of keys
        keyboard.press("ArrowUp")
        keyboard.press("Control+c")
        keyboard.press("Backspace")
        wanted = b"hello <b>there</b>\rt?\x1b[A\x03\x7f"
        until(lambda: bytes(vm.serial_log).endswith(wanted), "what was typed on the console")
        assert opened.js("() => document.querySelectorAll('dialog[open]').length") == 0
        keyboard.press("Shift+Tab")
        assert opened.js("() => document.activeElement.id") != "keys-to-guest"
        page.click("#tab-screen")
        screen = page.locator("#screen")
        expect(screen).to_contain_text("ready: hello <b>there</b>t?[A")
        opened.settled(echo)
        shown = echo.ask(lambda: vm.display)
        lines = opened.js(
            "() => [...document.querySelectorAll('#screen div')].map(d => d.textContent)"
        )
        assert [line.ljust(80) for line in lines] == [shown.line(row) for row in range(25)]
        first = opened.js("() => document.querySelector('#screen span').className")
        assert first.split()[:2] == ["front15", "back4"]
        page.screenshot(path=SCREENSHOTS / "screen.png")


def test_keys_typed_on_the_text_screen(echo: Served, browser: Browser) -> None:
    """They are the PC keyboard's, more of them than its queue holds; the console hears nothing."""
    with opening(echo, browser) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        _ready(opened, echo)
        before = bytes(echo.host.vms[0].serial_log)
        page.click("#tab-screen")
        panel = page.locator("#panel")
        expect(panel).to_contain_text("Click, or press k, and type.")
        keyboard.press("k")
        expect(panel).to_contain_text("Keys go to the guest; shift tab leaves.")
        keyboard.type("wer" * 20)
        keyboard.press("ArrowUp")
        expect(page.locator("#screen")).to_contain_text("ABC" * 20 + "x")
        keyboard.press("Shift+Tab")
        assert opened.js("() => document.activeElement.id") != "keys-to-keyboard"
        expect(panel).to_contain_text("Click, or press k, and type.")
        assert bytes(echo.host.vms[0].serial_log) == before


def test_a_screen_that_is_cleared(echo: Served, browser: Browser) -> None:
    """It is gone from the page, and who types goes on typing."""
    with opening(echo, browser) as opened:
        page, keyboard = opened.page, opened.page.keyboard
        _ready(opened, echo)
        page.click("#tab-screen")
        keyboard.press("k")
        keyboard.press("Tab")
        panel, part = page.locator("#panel"), f"screen:{echo.host.vms[0].vm_id}"
        expect(panel).to_contain_text("shows nothing on a text screen")
        assert not opened.js("part => memvirt.store.parts.has(part)", part)
        expect(panel).not_to_contain_text("ready")
        keyboard.type("we")
        expect(page.locator("#screen")).to_contain_text("AB")
        keyboard.press("Tab")
        expect(panel).to_contain_text("shows nothing on a text screen")
        keyboard.press("Shift+Tab")
        opened.settled(echo)
        page.click("#tab-walk")
        page.click("#tab-screen")
        expect(page.locator("#screen")).to_have_count(0)
        keyboard.press("k")  # no screen: the console
        assert opened.js("() => document.activeElement.id") == "keys-to-guest"
        expect(panel).to_contain_text("Paused: the guest reads when it runs.")
        page.click("#tab-screen")


def test_the_console_of_a_moment_that_is_over(echo: Served, browser: Browser) -> None:
    with opening(echo, browser) as opened:
        _ready(opened, echo)
        opened.settled(echo)
        number = opened.js("() => memvirt.store.live.header.number")
        echo.ask(lambda: echo.source.control("play"))
        opened.page.keyboard.press("k")
        opened.page.keyboard.type("later")
        expect(opened.page.locator("#console")).to_contain_text("later")
        opened.settled(echo)
        opened.js("n => memvirt.look(n)", number)
        expect(opened.page.locator("#console")).not_to_contain_text("later")
        expect(opened.page.locator("#keys-to-guest")).to_be_disabled()
        opened.page.click("#tab-screen")
        expect(opened.page.locator("#screen")).to_contain_text("ready:")
        expect(opened.page.locator("#screen")).not_to_contain_text("later")
        opened.js("() => memvirt.look(null)")
        expect(opened.page.locator("#screen")).to_contain_text("later")


def test_a_guest_that_halts_waits_for_input(tmp_path: Path) -> None:
    """Without a page it has ended: nothing can wake it."""
    scenario = _scenario(tmp_path, HALTS)
    with Host(parse_scenario(scenario, "alone")) as alone:
        for _ in range(50):
            alone.step()
        assert not alone.running
    with Host(parse_scenario(scenario, "looked at")) as host:
        Consoles(host)
        assert all(host.step() for _ in range(50))


def test_what_a_guest_does_not_read_is_bounded(tmp_path: Path, browser: Browser) -> None:
    with serving(_scenario(tmp_path, HALTS)) as served, opening(served, browser) as opened:
        opened.page.click("#tab-console")
        said = opened.js(
            """async () => {
              const { command } = await import('./static/connection.js');
              const typed = { vm: memvirt.store.vm, text: 'x'.repeat(5000) };
              try { for (let i = 0; i < 30; i++) await command('type', typed); }
              catch (error) { return error.message; }
            }"""
        )
        assert "does not read its console" in said
        opened.said[:] = [text for text in opened.said if "400" not in text]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"one\r\ntwo", ["one", "two"]),
        (b"10 %\r20 %\r30 %", ["30 %"]),
        (b"ab\x08\x08c", ["cb"]),
        (b"\x1b[31mred\x1b[0m \x1b[1mbold\x1b[m", ["red bold"]),
        (b"x\x1b[2J\x1b[3;5Hthere\x1b[1;1Hhere", ["here", "", "    there"]),
        (b"long line\x1b[5D\x1b[K!", ["long!"]),
        (b"\x1b]0;a title\x07text", ["text"]),
        (b"0123456789" * 9, ["0123456789" * 8, "0123456789"]),
        (b"a\tb\x1b[2Gz", ["az      b"]),
        (b"\x1b[2;3r\x1b[3;1Hx\ny\nz", ["", " y", "  z"]),
        (b"kept\x1b[?1049hgone\x1b[?1049l", ["kept"]),
        (b"1\r\n2\r\n3\x1b[1;1H\x1b[L0", ["0", "1", "2", "3"]),
        (b"1\r\n2\r\n3\x1b[1;1H\x1b[M", ["2", "3"]),
        (b"\x1b[999999999999Cend\x1b[;;;H<i>", ["<i>" + " " * 76 + "e", "nd"]),
        ("prüfung ✓".encode(), ["prüfung ✓"]),
        (b"\xff\xfe\x9b\x00ok", ["\ufffd\ufffd\ufffdok"]),
    ],
)
def test_the_terminal(opened: Opened, printed: bytes, shown: list[str]) -> None:
    """Byte by byte, as a slow line brings them."""
    lines: Any = opened.js(
        """async encoded => {
          const { Terminal } = await import('./static/terminal.js');
          const terminal = new Terminal();
          const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
          for (const byte of bytes) terminal.write(Uint8Array.of(byte));
          return terminal.lines.map(cells => cells.map(cell => cell.text).join('').trimEnd());
        }""",
        base64.b64encode(printed).decode(),
    )
    while lines and not lines[-1]:
        lines.pop()
    assert lines == shown
