# SPDX-License-Identifier: Apache-2.0
"""The balloon of a live VM: what was asked for, what the guest gave, and whether it stopped short.

QEMU has no word from the guest's driver but the size it has reached (``actual``): a guest without a
driver, or one that cannot give more, simply does not move.
"""

from __future__ import annotations

_PROGRESS = 256  # pages: less is no progress


class LiveBalloon:
    """``vmkernel.protocols.Balloon``. Amounts are pages.

    ``target`` is only kept; ``wanted`` is what to tell QEMU, and the caller says what it ``told``.
    """

    def __init__(self, patience: float, retry: float) -> None:
        self._patience, self._retry = patience, retry
        self.target = 0
        self.size = 0
        self.connected = False
        self.ceiling: int | None = None  # where it stopped short; None if it did not
        self._told: int | None = None
        self._best, self._best_at = 0, 0.0
        self._retry_at = 0.0

    @property
    def wanted(self) -> int | None:
        """The target QEMU has not been told yet, or None."""
        return self.target if self.target != self._told else None

    @property
    def held(self) -> int:
        """What the guest has been told to give."""
        return self._told if self._told is not None else self.size

    def told(self, target: int, now: float) -> None:
        """QEMU has been told ``target``."""
        self._told = target
        self._best, self._best_at = self.size, now

    def lost(self) -> None:
        """The guest cannot be asked now; nothing is to be concluded from that."""
        self.connected = False

    def seen(self, size: int, now: float) -> None:
        """The balloon has this size."""
        if self._told is None:
            self.target = self._told = size  # as somebody else left it
            self._best_at = now
        self.connected = True
        self.size = size
        if size > self._best + _PROGRESS or size + _PROGRESS >= self._told:
            self._best, self._best_at = size, now
        if self.ceiling is not None and now >= self._retry_at:
            self.ceiling = None

    def stops_short(self, now: float) -> bool:
        """True once, when the guest has made no progress to its target for too long.

        From then on, for some time, its ``ceiling`` is what it has given; the target too.
        """
        behind = self._told is not None and self.size + _PROGRESS < self._told
        if not behind or now - self._best_at < self._patience:
            return False
        self.ceiling = self.target = self.size
        self._retry_at = now + self._retry
        return True
