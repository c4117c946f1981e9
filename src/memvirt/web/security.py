# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the server: this machine's user, through the address that was printed, only.

A page elsewhere in the same browser can send requests to loopback addresses, and name servers can
be made to point at them. So: the *Host* header must name the address that is served (no other name
leads here), an *Origin*, where there is one, must be this server's own, and everything but the
page's own fixed files needs the token that only the printed address has.
"""

from __future__ import annotations

import hmac
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
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Door:
    """Decides about requests to a server at ``host`` and ``port`` with a secret ``token``."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._token = token
        named = f"[{host}]" if ":" in host else host
        names = {named, *(_LOOPBACK if named in _LOOPBACK else ())}
        self._hosts = {f"{name}:{port}" for name in names}
        if port == 80:
            self._hosts |= names
        self._origins = {f"http://{name}" for name in self._hosts}

    def refusal(self, headers: Mapping[str, str], token: str | None) -> str:
        """Why a request is refused, or "" if it may pass. ``token`` None: it needs none."""
        if headers.get("host", "") not in self._hosts:
            return "the Host header is not this server's address"
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            return "the request comes from another page"
        if token is not None and not hmac.compare_digest(token.encode(), self._token.encode()):
            return "the token is missing or wrong: use the address that memvirt printed"
        return ""
