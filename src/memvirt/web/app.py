# SPDX-License-Identifier: Apache-2.0
"""The web application: fixed files, one WebSocket for state, JSON for questions and commands."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .security import HEADERS, Door
from .source import Frame, NothingToSay, Source, SourceError
from .wire import Parts, encode

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_LOOK_SECONDS = 0.06  # between two looks for a new frame
_SEND_SECONDS = 20.0  # a client that takes longer over one message has vanished
_MOST_BYTES_A_SECOND = 500_000  # to one client: what changes more is sent less often
_ANSWER_SECONDS = 15.0
_MOST_BODY = 64 << 10

Answer = Callable[[dict[str, str]], Any]
Handler = Callable[[Request], Awaitable[Response]]


def _token(connection: HTTPConnection) -> str:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token if scheme == "Bearer" else connection.query_params.get("token", "")


class WebApplication:
    """The application for one source. ``answers`` and ``commands`` are by name.

    An answer or a command gets the request's values, as text, and runs in the source's thread.
    """

    def __init__(
        self,
        source: Source,
        door: Door,
        *,
        answers: dict[str, Answer],
        commands: dict[str, Answer],
    ) -> None:
        self._source = source
        self._door = door
        self._answers = answers
        self._commands = commands
        self._viewers = 0
        self._activity = 0  # of the viewers, those that show activity
        self.asgi = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._file),
                Route("/api/{name}", self._get, methods=["GET"]),
                Route("/api/{name}", self._post, methods=["POST"]),
                WebSocketRoute("/live", self._live),
            ]
        )

    # Files -------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        if refusal := self._door.refusal(request.headers, _token(request)):
            return PlainTextResponse(f"memvirt: {refusal}\n", 403, HEADERS)
        return FileResponse(STATIC / "index.html", headers=HEADERS, media_type="text/html")

    async def _file(self, request: Request) -> Response:
        """One of the page's fixed files: they hold nothing of the host, so they need no token."""
        if refusal := self._door.refusal(request.headers, None):
            return PlainTextResponse(f"memvirt: {refusal}\n", 403, HEADERS)
        path = STATIC / request.path_params["name"]
        if path.parent != STATIC or not path.is_file():
            return PlainTextResponse("memvirt: no such file\n", 404, HEADERS)
        kind = _TYPES.get(path.suffix, "application/octet-stream")
        return FileResponse(path, headers=HEADERS, media_type=kind)

    # Questions and commands --------------------------------------------------------------------

    async def _ask(self, name: str, table: dict[str, Answer], values: dict[str, str]) -> Response:
        if name not in table:
            known = ", ".join(sorted(table))
            return JSONResponse({"error": f'no "{name}"; there are {known}'}, 404, HEADERS)
        future = self._source.ask(lambda: table[name](values))
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(future), _ANSWER_SECONDS)
        except NothingToSay as error:
            return JSONResponse({"nothing": str(error)}, headers=HEADERS)
        except SourceError as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)
        except KeyError as error:
            return JSONResponse({"error": f"{name}: {error} is missing"}, 400, HEADERS)
        except TimeoutError:
            return JSONResponse({"error": "the host is busy: try again"}, 503, HEADERS)
        except Exception as error:  # a fault of ours: the page says so, the server goes on
            text = f"{name} failed, which is a fault of memvirt: {type(error).__name__}: {error}"
            return JSONResponse({"error": text}, 500, HEADERS)
        if isinstance(answer, bytes):
            return Response(answer, headers=HEADERS, media_type="application/octet-stream")
        return JSONResponse(answer, headers=HEADERS)

    async def _get(self, request: Request) -> Response:
        if refusal := self._door.refusal(request.headers, _token(request)):
            return JSONResponse({"error": refusal}, 403, HEADERS)
        name = request.path_params["name"]
        return await self._ask(name, self._answers, dict(request.query_params))

    async def _post(self, request: Request) -> Response:
        if refusal := self._door.refusal(request.headers, _token(request)):
            return JSONResponse({"error": refusal}, 403, HEADERS)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BODY:
                return JSONResponse({"error": "the request is too long"}, 413, HEADERS)
        try:
            values = json.loads(body or b"{}")
            if not isinstance(values, dict):
                raise ValueError
            texts = {str(key): str(value) for key, value in values.items()}
        except (ValueError, RecursionError):
            return JSONResponse({"error": "the body must be a JSON object"}, 400, HEADERS)
        return await self._ask(request.path_params["name"], self._commands, texts)

    # State -------------------------------------------------------------------------------------

    async def _live(self, socket: WebSocket) -> None:
        if self._door.refusal(socket.headers, _token(socket)):
            await socket.close(4403)
            return
        await socket.accept()
        self._viewers += 1
        self._source.watch(self._viewers, self._activity)
        gone = asyncio.ensure_future(self._until_gone(socket))
        try:
            await socket.send_text(json.dumps(self._source.hello()))
            await self._send_frames(socket, gone)
        except (WebSocketDisconnect, TimeoutError, RuntimeError, OSError):
            pass  # the page is gone, or as good as gone
        finally:
            gone.cancel()
            self._viewers -= 1
            self._source.watch(self._viewers, self._activity)

    async def _until_gone(self, socket: WebSocket) -> None:
        """Read what the client wishes until it closes: ``{"activity": true}``, or false."""
        wished = False
        try:
            while True:
                wish = _wish(await socket.receive_text())
                if wish is not None and wish is not wished:
                    wished = wish
                    self._activity += 1 if wished else -1
                    self._source.watch(self._viewers, self._activity)
        except (WebSocketDisconnect, RuntimeError, KeyError):
            return
        finally:
            self._activity -= wished
            self._source.watch(self._viewers, self._activity)

    async def _send_frames(self, socket: WebSocket, gone: asyncio.Future[None]) -> None:
        """Send what is new, from what was sent last to what is true now."""
        number, parts, offsets = 0, None, Offsets()
        while not gone.done():
            frame = self._source.latest
            if frame is None or frame.number == number:
                await asyncio.wait({gone}, timeout=_LOOK_SECONDS)
                continue
            events = self._source.events_since
            message = await asyncio.to_thread(_message, frame, parts, offsets, events)
            await asyncio.wait_for(socket.send_bytes(message), _SEND_SECONDS)
            number, parts = frame.number, frame.parts
            await asyncio.wait({gone}, timeout=len(message) / _MOST_BYTES_A_SECOND)


def _wish(text: str) -> bool | None:
    """Whether a client wishes to see activity; None if it says nothing of it."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    wish = said.get("activity") if isinstance(said, dict) else None
    return wish if isinstance(wish, bool) else None


@dataclass(slots=True)
class Offsets:
    """How far a client is: bytes of each console, and events (None before its first frame)."""

    consoles: dict[int, int] = field(default_factory=dict)
    events: int | None = None


def _message(
    frame: Frame,
    before: Parts | None,
    offsets: Offsets,
    events: Callable[[int], list[dict[str, Any]]],
) -> bytes:
    """A frame for a client that has ``before``, and consoles and events up to ``offsets``.

    Events before its first frame are asked for.
    """
    consoles = {}
    for vm_id, (start, content) in frame.consoles.items():
        seen = offsets.consoles.get(vm_id, 0)
        end = start + len(content)
        if end > seen:
            new = content[max(seen - start, 0) :]
            consoles[vm_id] = [end - len(new), base64.b64encode(new).decode()]
            offsets.consoles[vm_id] = end
    upto = frame.header.get("events", 0)
    news = [] if offsets.events in (None, upto) else events(offsets.events or 0)
    offsets.events = news[-1]["number"] + 1 if news else upto
    more = {"consoles": consoles, "news": news}
    return encode(more, frame.parts, before, text=frame.text)
