# SPDX-License-Identifier: Apache-2.0
"""Who is let in, and what a client that is slow, gone or hostile costs."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from memvirt.web.server import ServerError, WebServer, parse_address

from .conftest import Served


def request(
    served: Served, path: str, *, method: str = "GET", body: str | None = None, **headers: str
) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=300)
    sent = {"Host": f"127.0.0.1:{served.server.port}", **headers}
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def token(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.server.token}"}


@pytest.mark.parametrize("path", ["/", "/api/series", "/api/map?vm=1&gva=0"])
def test_nothing_without_the_token(served: Served, path: str) -> None:
    assert request(served, path).status == 403
    assert request(served, path, Authorization="Bearer wrong").status == 403


def test_commands_need_the_token(served: Served) -> None:
    body = json.dumps({"command": "pause"})
    assert request(served, "/api/control", method="POST", body=body).status == 403
    assert request(served, "/api/control", method="POST", body=body, **token(served)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Host": "elsewhere.example"},
        {"Host": "127.0.0.1:1"},
    ],
)
def test_other_pages_and_names_are_refused(served: Served, headers: dict[str, str]) -> None:
    assert request(served, "/api/series", **{**token(served), **headers}).status == 403
    assert request(served, "/static/app.js", **headers).status == 403


def test_sockets_of_other_pages_are_refused(served: Served) -> None:
    address = f"ws://127.0.0.1:{served.server.port}/live?token="
    with pytest.raises(InvalidStatus):
        connect(address + served.server.token, origin="http://elsewhere.example")  # type: ignore[arg-type]
    with pytest.raises(InvalidStatus):
        connect(address + "wrong")


def test_no_script_but_our_own_files(served: Served) -> None:
    response = request(served, f"/?token={served.server.token}")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert b"<script>" not in response.body
    for name in ("..%2f__init__.py", "nothing.js", "..%2f..%2fpyproject.toml"):
        assert request(served, f"/static/{name}").status == 404


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/map?vm=99&gva=0", "no VM 99"),
        ("/api/map?vm=0&gva=rubbish", "no number"),
        ("/api/map?vm=0", "missing"),
        ("/api/page?vm=0&ppn=0xffffff", "beyond"),
        ("/api/frame?mpn=0xffffffff", "beyond"),
        ("/api/at?number=0", "not kept"),
        ("/api/nothing", "there are"),
        ("/api/lesson?paging=rubbish", "shadow and nested"),
    ],
)
def test_bad_questions_have_one_clear_error(served: Served, path: str, said: str) -> None:
    vm = served.host.vms[0].vm_id
    response = request(served, path.replace("vm=0", f"vm={vm}"), **token(served))
    assert response.status in (400, 404)
    assert said in json.loads(response.body)["error"]


def test_a_client_that_does_not_read_stalls_nobody(served: Served) -> None:
    """Frames are not queued for it, and the host goes on."""
    address = f"ws://127.0.0.1:{served.server.port}/live?token={served.server.token}"
    with connect(address, max_queue=1):
        before = served.round()
        served.ask(lambda: served.source.control("speed", 0))
        served.ask(lambda: served.source.control("play"))
        deadline = time.monotonic() + 300
        while served.round() < before + 50:
            assert time.monotonic() < deadline
        served.ask(lambda: served.source.control("pause"))
        served.ask(lambda: served.source.control("speed", 20))
    assert request(served, "/api/series", **token(served)).status == 200


def test_nothing_is_captured_when_nobody_looks(served: Served) -> None:
    served.source.watch(0)
    served.ask(lambda: None)  # what was being captured is finished
    latest = served.source.latest
    served.ask(lambda: served.source.control("step", 5))
    before = served.round()
    while served.round() < before + 1 and served.ask(lambda: served.source._steps):
        pass
    assert served.source.latest is latest


@pytest.mark.parametrize("text", ["127.0.0.1:99999", "host:port", "1.2.3.4:x"])
def test_addresses_that_cannot_be(text: str) -> None:
    with pytest.raises(ServerError, match="HOST:PORT"):
        parse_address(text)


def test_a_port_in_use_is_one_line(served: Served) -> None:
    with pytest.raises(ServerError, match="cannot be served"):
        WebServer(
            served.source,
            parse_address(f"127.0.0.1:{served.server.port}"),
            answers={},
            commands={},
        )
