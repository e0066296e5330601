"""The pictures of the live page: heat maps over camera frames for features, pictures beside each other for pixels."""

from __future__ import annotations

import base64

import numpy as np
from jaxtyping import Float, UInt8

from wamkit.evaluation.report_figures import overlay, photo
from wamkit.inference.monitor import Comparison, Imagined, patch_distance

_SIDE = 288


def feature_panels(
    imagined: Imagined,
    comparison: Comparison | None,
    now: UInt8[np.ndarray, "h w 3"],
    then: UInt8[np.ndarray, "h w 3"],
    grid: tuple[int, int] | None,
    top: float,
) -> list[dict[str, str]]:
    """What is seen, what was imagined for now, what came, where the two differ, and what is imagined from here.

    Args:
        imagined: Of the newest look.
        comparison: The newest one; None before the first.
        now: The camera's picture of the newest look.
        then: That of the look at which now was imagined.
        grid: Rows and columns of the patches; None: no heat map can be laid over a picture.
        top: Squared distance of a patch in full colour, the same for all maps so that they can be compared.
    """
    panels = [_panel("seen now", photo(now, side=_SIDE))]
    if grid is None:
        return panels

    def heat(picture: np.ndarray, one: np.ndarray, other: np.ndarray, colours: str) -> bytes:
        distance = patch_distance(one, other, grid)
        assert distance is not None
        return overlay(picture, distance.ravel(), grid, low=0.05 * top, high=top, colours=colours, side=_SIDE)

    if comparison is not None:
        ago = f"{comparison.surprise.horizon:.2g} s ago"
        before, expected, seen = comparison.before, comparison.expected, comparison.seen
        panels += [
            _panel(f"change imagined {ago}, over the picture then", heat(then, before, expected, "inferno")),
            _panel("change that came, over the picture now", heat(now, before, seen, "inferno")),
            _panel("where it is not as imagined", heat(now, expected, seen, "viridis")),
        ]
    ahead = f"change imagined for {imagined.times[0]:.2g} s from now"
    return [*panels, _panel(ahead, heat(now, imagined.present, imagined.values[0], "inferno"))]


def pixel_panels(imagined: Imagined, comparison: Comparison | None) -> list[dict[str, str]]:
    """Pictures that the model made beside what it sees, at the size at which it imagines."""
    panels = [_panel("seen now", photo(picture_of(imagined.present), side=_SIDE))]
    if comparison is not None:
        seen, expected = picture_of(comparison.seen), picture_of(comparison.expected)
        gap = np.abs(comparison.seen - comparison.expected).mean(axis=0)
        height, width = gap.shape
        difference = overlay(seen, gap.ravel(), (height, width), low=0.02, high=max(0.25, float(gap.max())), side=_SIDE)
        ago = f"{comparison.surprise.horizon:.2g} s ago"
        panels += [
            _panel(f"imagined {ago} for now", photo(expected, side=_SIDE)),
            _panel("where it is not as imagined", difference),
        ]
    ahead = f"imagined for {imagined.times[-1]:.2g} s from now"
    return [*panels, _panel(ahead, photo(picture_of(imagined.values[-1]), side=_SIDE))]


def picture_of(values: Float[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1] as a picture."""
    return (np.moveaxis(values, 0, -1).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def _panel(caption: str, jpeg: bytes) -> dict[str, str]:
    return {"caption": caption, "src": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
