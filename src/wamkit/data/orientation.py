"""Is a camera upside down, mirrored, or another camera? Told from what its pictures look like on average.

A policy learns from upright pictures and meets flipped ones: no shape differs, nothing fails, success drops to zero.
The mean picture of a fixed scene is telling enough to see it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from wamkit.data.frames import resize_frames

THUMBNAIL = 12
"""Side of a thumbnail."""
MARGIN = 0.15
"""How much better another orientation or camera must correlate before it is called a mistake."""

Thumbnail = tuple[tuple[int, ...], ...]
"""Rows of gray values."""
_TURNS = {
    "upside down (flipped vertically)": lambda picture: picture[::-1],
    "mirrored (flipped horizontally)": lambda picture: picture[:, ::-1],
    "turned by 180 degrees": lambda picture: picture[::-1, ::-1],
}


def thumbnail(frames: np.ndarray | torch.Tensor) -> Thumbnail:
    """The mean picture in gray, ``THUMBNAIL`` x ``THUMBNAIL`` values in 0..255.

    Args:
        frames: uint8 ``[n, H, W, 3]``.
    """
    mean = resize_frames(frames, THUMBNAIL).float().mean(dim=(0, 1))
    return tuple(tuple(int(value) for value in row) for row in mean.round().tolist())


def layout_problem(camera: str, frames: np.ndarray, known: Mapping[str, Thumbnail]) -> str | None:
    """What is wrong with a camera's pictures, if another reading of them fits clearly better.

    Args:
        camera: Its name.
        frames: uint8 ``[n, H, W, 3]``, some of what it shows.
        known: Thumbnails by camera, as of training.

    Returns:
        What they look, such as ``"upside down (flipped vertically)"`` or ``"like those of camera 'wrist'"``; None where
        they fit.
    """
    if camera not in known or len(frames) == 0:
        return None
    shown, reference = np.array(thumbnail(frames), np.float64), np.array(known[camera], np.float64)
    least = _correlation(shown, reference) + MARGIN
    readings = {name: _correlation(turn(shown), reference) for name, turn in _TURNS.items()}
    readings |= {
        f"like those of camera {other!r}": _correlation(shown, np.array(picture, np.float64))
        for other, picture in known.items()
        if other != camera
    }
    best = max(readings, key=lambda name: readings[name])
    return best if readings[best] > max(least, 0.5) else None


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum() / norm) if norm > 0 else 0.0
