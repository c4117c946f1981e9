# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the server: this machine's user, through the address that was printed, only.

A page elsewhere in the same browser can send requests to loopback addresses, and name servers can
be made to point at them. So: the *Host* header must name the address that is served (no other name
leads here), an *Origin*, where there is one, must be this server's own, and everything but the
page's own fixed files needs the token that only the printed address has. A server at every address
of the machine (0.0.0.0) is reached by any of them in figures, or by the machine's name: a name
server can lead a browser here by a name of its own only.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_EVERYWHERE = ("0.0.0.0", "[::]")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Door:
    """Decides about requests to a server at ``host`` and ``port`` with a secret ``token``."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._token = token
        named = f"[{host}]" if ":" in host else host
        names = {named, *(_LOOPBACK if named in _LOOPBACK else ())}
        self._hosts = {f"{name}:{port}" for name in names}
        if port == 80:
            self._hosts |= names
        self._any = named in _EVERYWHERE
        self._port = port
        self._names = {socket.gethostname().lower(), "localhost"} if self._any else set()

    def _leads_here(self, host: str) -> bool:
        """Whether a *Host* header names this server."""
        if host in self._hosts:
            return True
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "80")
        if not self._any or port != str(self._port):
            return False
        return name.lower() in self._names or _is_address(name.strip("[]"))

    def refusal(self, headers: Mapping[str, str], token: str | None) -> str:
        """Why a request is refused, or "" if it may pass. ``token`` None: it needs none."""
        host = headers.get("host", "")
        if not self._leads_here(host):
            return "the Host header is not this server's address"
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return "the request comes from another page"
        if token is not None and not hmac.compare_digest(token.encode(), self._token.encode()):
            return "the token is missing or wrong: use the address that memvirt printed"
        return ""
