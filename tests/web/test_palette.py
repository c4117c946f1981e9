# SPDX-License-Identifier: Apache-2.0
"""The page's own colours, as people who lack one kind of cone see them."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from memvirt.observe.page_classes import FrameClass, GuestClass
from memvirt.web.app import STATIC
from memvirt.web.page_activity import UseClass

from .dichromacy import VISIONS, distance, lab

_SCRIPT = (STATIC / "colors.js").read_text()
_STYLE = (STATIC / "style.css").read_text()
_GROUNDS = re.findall(r"--empty: (#[0-9a-f]{6})", _STYLE)
# Of the usual palette to all who have three kinds of cones; of the other one to anybody.
_LEAST_USUAL, _LEAST_DISTINCT, _LEAST_USE = 15, 20, 12


def _colours(name: str, palette: str | None = None) -> list[str]:
    script = _SCRIPT
    if palette is not None:
        script = script[script.index(f"  {palette}: {{") :]
    found = re.search(name + r"(?:: | = )\[([^\]]*)\]", script)
    assert found is not None
    return re.findall(r"'([^']*)'", found.group(1))


def _nearest(colours: list[str], vision: str) -> tuple[float, str, str]:
    """The two different colours that are most alike, on either ground."""
    found = []
    for ground in _GROUNDS:
        shown = {ground if colour == "empty" else colour for colour in colours}
        for one, other in itertools.combinations(sorted(shown), 2):
            found.append((distance(one, other, vision), one, other))
    return min(found)


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len(_GROUNDS) == 2  # light and dark
    for palette in ("usual", "distinct"):
        guest, frame = _colours("guest", palette), _colours("frame", palette)
        assert len(guest) == len(set(guest)) == len(GuestClass)
        assert len(frame) == len(FrameClass)
        assert len(set(frame)) == len(frame) - 1  # shadow and nested tables are both tables
        assert frame[FrameClass.SHADOW] == frame[FrameClass.NESTED]
        assert frame[FrameClass.GUEST] == guest[GuestClass.PRIVATE]
        assert frame[FrameClass.SHARED] == guest[GuestClass.SHARED]
        assert frame[FrameClass.COMPRESSED] == guest[GuestClass.COMPRESSED]
    assert len(set(_colours("USE"))) == len(UseClass)


@pytest.mark.parametrize("kind", ["guest", "frame"])
def test_the_usual_palette(kind: str) -> None:
    nearest = _nearest(_colours(kind, "usual"), "all cones")
    assert nearest[0] >= _LEAST_USUAL, nearest


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("kind", ["guest", "frame"])
def test_the_palette_for_the_colour_blind(kind: str, vision: str) -> None:
    nearest = _nearest(_colours(kind, "distinct"), vision)
    assert nearest[0] >= _LEAST_DISTINCT, nearest


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_activity_rise_in_lightness(vision: str) -> None:
    """Later is lighter, to anybody; and each can be told from the others."""
    colours = _colours("USE")
    nearest = _nearest(colours, vision)
    assert nearest[0] >= _LEAST_USE, nearest
    lightness = [lab(colour, vision)[0] for colour in colours[1:]]
    assert np.all(np.diff(lightness) > 5), lightness


def test_the_simulation() -> None:
    """What is known of it: greys stay grey, and red and green that are confused come together."""
    for vision in VISIONS:
        assert np.abs(lab("#808080", vision)[1:]).max() < 6
    for vision in ("protanopia", "deuteranopia"):
        usual, confused = (distance("#c00000", "#6b6b00", v) for v in ("all cones", vision))
        assert confused < usual / 2
    assert distance("#0000ff", "#00ffff", "tritanopia") > 20
