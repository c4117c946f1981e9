# SPDX-License-Identifier: Apache-2.0
"""``memvirt web``: a record without a host shows the moments it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from memvirt.observe.page_classes import GuestClass
from memvirt.observe.record import Recorder, RecordError
from memvirt.vmkernel.samples import Sample
from memvirt.web.record_source import RecordSource, answers
from memvirt.web.server import Address, WebServer

from .conftest import Opened, Served
from .test_page import classes_in
from .test_security import request

_SAMPLES = 4


@pytest.fixture(scope="module")
def recorded(
    served: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WebServer, list[Sample]]]:
    served.ask(lambda: served.source.control("pause"))
    path, samples = tmp_path_factory.mktemp("record") / "small.parquet", []
    with Recorder(path, scenario="", name="small", version="1") as recorder:
        for _ in range(_SAMPLES):
            samples.append(served.ask(lambda: (served.host.step(), served.host.sample())[1]))
            recorder.add(samples[-1])
    source = RecordSource(path)
    server = WebServer(source, Address(), answers=answers(source), commands={})
    server.start()
    yield server, samples
    server.close()


def test_a_record_shows_its_moments(
    recorded: tuple[WebServer, list[Sample]], browser: Browser
) -> None:
    server, samples = recorded
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    opened = Opened(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.goto(server.url)
    opened.until("globalThis.memvirt?.store.live.header != null")
    opened.until(f"memvirt.store.series.length === {_SAMPLES}")
    expect(page.locator("#controls")).to_be_hidden()
    expect(page.locator("#settings")).to_be_hidden()
    for back, sample in enumerate(reversed(samples)):
        if back:
            page.keyboard.press("[")
        number = _SAMPLES - back
        opened.until("n => memvirt.store.header.number === n", number)
        for vm in sample.vms:
            shown = classes_in(opened, f"vm:{vm.vm_id}")
            assert int((shown == GuestClass.SHARED).sum()) == vm.shared
            assert int((shown == GuestClass.SWAPPED).sum()) == vm.swapped
    page.keyboard.press("g")
    expect(page.locator("#panel")).to_contain_text("A record has how many pages")
    assert opened.said == []
    page.close()


@pytest.mark.parametrize("number", ["0", "5", "rubbish", "-1"])
def test_moments_that_are_not_there(
    recorded: tuple[WebServer, list[Sample]], served: Served, number: str
) -> None:
    server, _ = recorded
    response = request(
        Served(served.host, served.source, server),
        f"/api/at?number={number}",
        Authorization=f"Bearer {server.token}",
    )
    assert response.status == 400
    assert "number" in json.loads(response.body)["error"] or "1 to 4" in response.body.decode()


def test_other_files_are_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.parquet"
    wrong.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(RecordError, match=r"wrong\.parquet"):
        RecordSource(wrong)
