# SPDX-License-Identifier: Apache-2.0
"""The other side of the remote serial protocol, packet by packet."""

from __future__ import annotations

import contextlib
import socket

from memvirt.gdb.packets import PacketReader, framed


class Client:
    """Speaks to a stub. Every call waits for its answer."""

    def __init__(self, place: str) -> None:
        if ":" in place and "/" not in place:
            host, port = place.rsplit(":", 1)
            self._socket = socket.create_connection((host, int(port)))
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(place)
        self._socket.settimeout(300)
        self._reader = PacketReader()
        self._packets: list[bytes] = []

    def send(self, content: str) -> None:
        self._socket.sendall(framed(content.encode("latin-1")))

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> str:
        """The next packet. Raises EOFError if the other side is gone."""
        while not self._packets:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            for packet in self._reader.take(data).packets:
                assert packet is not None
                self._packets.append(packet)
                with contextlib.suppress(ConnectionError):  # gone after its last word
                    self._socket.sendall(b"+")
        return self._packets.pop(0).decode("latin-1")

    def ask(self, content: str) -> str:
        self.send(content)
        return self.receive()

    def close(self) -> None:
        self._socket.close()
