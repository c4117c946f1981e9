# SPDX-License-Identifier: Apache-2.0
"""Who is let in, and what is said to bad questions."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from memvirt.web.security import Door
from memvirt.web.server import ServerError, WebServer, parse_address

from .conftest import Served


def request(
    served: Served,
    path: str,
    *,
    method: str = "GET",
    body: str | bytes | None = None,
    **headers: str,
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
        ("/api/nothing", "there are"),
        ("/api/lesson?paging=rubbish", "shadow and nested"),
    ],
)
def test_bad_questions_have_one_clear_error(served: Served, path: str, said: str) -> None:
    vm = served.host.vms[0].vm_id
    response = request(served, path.replace("vm=0", f"vm={vm}"), **token(served))
    assert response.status in (400, 404)
    assert said in json.loads(response.body)["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"command": "step", "value": "nan"}', "value: nan is no number"),
        ('{"command": "step", "value": "inf"}', "value: inf is no number"),
        ('{"command": "speed", "value": 1e999}', "value: inf is no number"),
        ('{"command": "step", "value": "many"}', "value: many is no number"),
        ("[" * 30_000, "the body must be a JSON object"),
        ('{"command": ' + "[" * 20_000 + "]" * 20_000 + "}", "the body must be a JSON object"),
        ("rubbish", "the body must be a JSON object"),
        (b"\xff\xfe{", "the body must be a JSON object"),
    ],
)
def test_bad_commands_have_one_clear_error(served: Served, body: str | bytes, said: str) -> None:
    response = request(served, "/api/control", method="POST", body=body, **token(served))
    assert response.status == 400
    assert json.loads(response.body)["error"] == said


def test_a_question_without_an_answer_is_no_error(served: Served) -> None:
    """A page may ask for a moment that has just been dropped, or of a VM that has just ended."""
    response = request(served, "/api/at?number=0", **token(served))
    assert response.status == 200
    assert "not kept" in json.loads(response.body)["nothing"]


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("192.0.2.7:8000", None, True),
        ("192.0.2.7:8000", "http://192.0.2.7:8000", True),
        ("[2001:db8::1]:8000", None, True),
        ("localhost:8000", None, True),
        ("192.0.2.7:8001", None, False),
        ("elsewhere.example:8000", None, False),
        ("192.0.2.7:8000", "http://elsewhere.example:8000", False),
        ("192.0.2.7:8000", "http://192.0.2.8:8000", False),
        ("192.0.2.7:8000", "https://192.0.2.7:8000", False),
        ("192.0.2.7", None, False),
        ("", None, False),
    ],
)
def test_a_server_at_every_address(host: str, origin: str | None, passes: bool) -> None:
    """Any address in figures leads here; a name that somebody else's server resolves does not."""
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert (Door("0.0.0.0", 8000, "secret").refusal(headers, "secret") == "") == passes
    assert (Door("127.0.0.1", 8000, "secret").refusal(headers, "secret") == "") == (
        host == "localhost:8000"
    )


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
