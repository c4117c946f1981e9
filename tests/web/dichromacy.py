# SPDX-License-Identifier: Apache-2.0
"""How colours look to people with one kind of cone missing, and how far apart two of them are.

Simulation: Viénot, Brettel and Mollon, "Digital video colourmaps for checking the legibility of
displays by dichromats", Color Research and Application 24 (1999), for protanopia and deuteranopia;
for tritanopia the plane through grey and 485 nm of Brettel, Viénot and Mollon (1997). Distance:
CIE 1976 in L*a*b* (D65), in which 2.3 is just noticeable.
"""

from __future__ import annotations

import numpy as np

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

# Linear RGB to LMS (Viénot et al., table 1).
_LMS = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
_MISSING = {
    "protanopia": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deuteranopia": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
    "tritanopia": np.array([[1, 0, 0], [0, 1, 0], [-0.395913, 0.801109, 0]]),
}
VISIONS = ("all cones", *_MISSING)
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def _linear(colour: str) -> Vector:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: str, vision: str) -> Vector:
    """L*a*b* of "#rrggbb" as somebody with this vision sees it."""
    linear = _linear(colour)
    if vision in _MISSING:
        linear = np.clip(np.linalg.inv(_LMS) @ _MISSING[vision] @ _LMS @ linear, 0, 1)
    ratio = _XYZ @ linear / _WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, vision: str) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))
