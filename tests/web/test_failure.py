# SPDX-License-Identifier: Apache-2.0
"""A fault in the host's thread: it ends no thread, and the page says what it was."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from memvirt.web.source import Frame

from .conftest import SCENARIO, opening, serving


@pytest.mark.parametrize("broken", ["step", "capture"])
def test_the_page_says_why_the_host_stands(
    broken: str, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Frame:
        raise RuntimeError(f"no {broken} any more")

    with serving(SCENARIO) as served, opening(served, browser) as opened:
        monkeypatch.setattr(served.host if broken == "step" else served.source, broken, fails)
        served.ask(lambda: served.source.control("play"))
        notice = opened.page.locator("#notice")
        said = f"the host cannot go on: RuntimeError: no {broken} any more"
        expect(notice).to_have_text(said)
        assert served.source.error == f"RuntimeError: no {broken} any more"
        stood = served.round()  # its thread answers
        opened.page.reload()
        expect(notice).to_have_text(said)
        assert served.round() == stood
