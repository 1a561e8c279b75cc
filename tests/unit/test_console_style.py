"""The style of the console: its colours can be read, on light and on dark."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

CSS = files("worker.gateway.console").joinpath("static/console.css").read_text()
COLOURS = {name: pair for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", CSS)}

#: Words on grounds: WCAG 2.2 asks for 4.5 (1.4.3, AA).
WORDS = [
    *((ink, ground) for ink in ("ink", "quiet", "link") for ground in ("ground", "panel", "raised")),
    *((ink, f"{ink}-ground") for ink in ("good", "warn", "bad", "busy")),
    *((ink, ground) for ink in ("good", "warn", "bad") for ground in ("panel", "ground")),
    ("quiet", "raised"), ("on-accent", "accent"), ("on-danger", "danger"),
]  # fmt: skip
#: Edges of what can be used, and where the keyboard is: it asks for 3 (1.4.11).
EDGES = [("edge", "ground"), ("edge", "panel"), ("link", "ground"), ("link", "panel"), ("link", "raised")]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_for_who_sees_badly(theme: int) -> None:
    assert round(contrast("#000000", "#ffffff"), 1) == 21.0
    for pairs, least in ((WORDS, 4.5), (EDGES, 3.0)):
        found = {pair: round(contrast(*(COLOURS[name][theme] for name in pair)), 2) for pair in pairs}
        assert {pair: value for pair, value in found.items() if value < least} == {}


def test_motion_stops_for_who_asks_for_that() -> None:
    assert "prefers-reduced-motion: reduce" in CSS
