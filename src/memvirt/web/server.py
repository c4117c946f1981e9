# SPDX-License-Identifier: Apache-2.0
"""The server in a thread of its own, on one loopback socket."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from memvirt.errors import MemvirtError

from .app import Answer, WebApplication
from .security import Door
from .source import Source

_MOST_MESSAGE = 4096  # bytes a client may send in one WebSocket message: it has nothing to say


class ServerError(MemvirtError):
    """The server cannot be started; the message says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to serve. Port 0: any that is free."""

    host: str = "127.0.0.1"
    port: int = 0


def parse_address(text: str) -> Address:
    """``HOST:PORT``, ``HOST``, ``:PORT`` or ``PORT``. Raises ServerError."""
    if not text:
        return Address()
    host, _, port = text.rpartition(":") if ":" in text else (("", "", text))
    if not port.isdigit() and ":" not in text:
        host, port = text, "0"
    if not port.isdigit() or int(port) > 0xFFFF:
        raise ServerError(f"{text}: should be HOST:PORT, for instance 127.0.0.1:8080")
    return Address(host.strip("[]") or "127.0.0.1", int(port))


class WebServer:
    """Serves ``source`` until ``close``. ``url`` has the token: who has it may change the host."""

    def __init__(
        self,
        source: Source,
        address: Address,
        *,
        answers: dict[str, Answer],
        commands: dict[str, Answer],
        token: str = "",
        on_error: Callable[[str], object] | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((address.host, address.port))
            self._socket.listen()  # who has read the address may connect, though it is early
        except OSError as error:
            self._socket.close()
            where = f"{address.host}:{address.port}"
            raise ServerError(f"{where}: cannot be served: {error.strerror or error}") from error
        self.port = int(self._socket.getsockname()[1])
        self.token = token or secrets.token_urlsafe(24)
        named = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"http://{named}:{self.port}/?token={self.token}"
        application = WebApplication(
            source,
            Door(address.host, self.port, self.token),
            answers=answers,
            commands=commands,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                application.asgi,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws_max_size=_MOST_MESSAGE,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=1,
                server_header=False,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Stop serving; open pages say that the host is gone."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()
