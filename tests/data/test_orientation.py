"""Flipped and exchanged cameras are seen; other light is not called a flip."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.data.orientation import THUMBNAIL, layout_problem, thumbnail

Y, X = np.mgrid[:48, :64] / 64.0


def scene(shift: float = 0.0, light: float = 1.0) -> np.ndarray:
    gray = 90 + 60 * np.sin(5 * X + 3 * Y + shift) * Y + 40 * (X > 0.6) * (Y < 0.3)
    noise = np.random.default_rng(0).normal(0, 5, (4, 48, 64, 3))
    return np.clip(gray[None, :, :, None] * light + noise, 0, 255).astype(np.uint8)


FRONT, WRIST = scene(), scene(2.0)
KNOWN = {"front": thumbnail(FRONT), "wrist": thumbnail(WRIST)}


def test_a_thumbnail_is_small_and_plain():
    assert len(KNOWN["front"]) == THUMBNAIL
    assert all(isinstance(value, int) for row in KNOWN["front"] for value in row)


@pytest.mark.parametrize("light", [0.6, 1.0, 1.3])
def test_the_same_view_fits_in_any_light(light):
    assert layout_problem("front", scene(light=light), KNOWN) is None


@pytest.mark.parametrize(
    ("turned", "told"),
    [
        (FRONT[:, ::-1], "upside down"),
        (FRONT[:, :, ::-1], "mirrored"),
        (FRONT[:, ::-1, ::-1], "turned by 180"),
        (WRIST, "those of camera 'wrist'"),
    ],
)
def test_flips_and_exchanges_are_told(turned, told):
    assert told in layout_problem("front", turned, KNOWN)


def test_without_anything_to_compare_nothing_is_told():
    assert layout_problem("other", FRONT, KNOWN) is None
    assert layout_problem("front", FRONT[:0], KNOWN) is None
    assert layout_problem("front", np.zeros((2, 8, 8, 3), np.uint8), KNOWN) is None
