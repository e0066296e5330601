"""Which frames an episode truly has, which is nearest to a moment, and how a frame gets the model's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ResizeRule = Literal["stretch", "crop", "pad"]
"""How frames of another shape become the model's; see :func:`resize_frames`."""


def size_of(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a resolution given as one side or as both."""
    if isinstance(resolution, int):
        return resolution, resolution
    height, width = resolution
    return int(height), int(width)


def new_frame_rows(length: int, fps: float, video_rate_hz: float) -> np.ndarray:
    """The rows of an episode at which a new video frame appears: int64, ascending, the first is 0.

    Frame j exists from j / video_rate_hz on; its row is the first that does not lie before it.
    """
    ratio = max(1.0, fps / video_rate_hz)
    rows = np.ceil(np.arange(int(length / ratio) + 2) * ratio - 1e-6).astype(np.int64)
    return rows[rows < length]


def resize_frames(frames: np.ndarray | Tensor, resolution: int | Sequence[int], rule: ResizeRule = "stretch") -> Tensor:
    """Frames at the model's resolution; the same code for recordings and for a robot's live camera.

    Args:
        frames: uint8 ``[n, H, W, 3]``.
        resolution: One side, or (height, width).
        rule: ``stretch`` keeps the whole view and loses the aspect; ``crop`` cuts the centre; ``pad`` adds black.

    Returns:
        uint8 ``[n, 3, height, width]``, contiguous; bilinear with antialiasing, unchanged where the size fits.
    """
    height, width = size_of(resolution)
    # A simulator hands out flipped views, whose negative strides torch does not take.
    given = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
    pictures = given.movedim(-1, 1)
    source_height, source_width = pictures.shape[-2:]
    if (source_height, source_width) == (height, width):
        return pictures.contiguous()
    if rule == "stretch":
        return _scaled(pictures, height, width)
    if rule == "crop":
        scale = min(source_height / height, source_width / width)
        cut_height, cut_width = round(height * scale), round(width * scale)
        top, left = (source_height - cut_height) // 2, (source_width - cut_width) // 2
        return _scaled(pictures[..., top : top + cut_height, left : left + cut_width], height, width)
    scale = min(height / source_height, width / source_width)
    inner_height, inner_width = max(1, round(source_height * scale)), max(1, round(source_width * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = pictures.new_zeros(*pictures.shape[:-2], height, width)
    padded[..., top : top + inner_height, left : left + inner_width] = _scaled(pictures, inner_height, inner_width)
    return padded


def _scaled(pictures: Tensor, height: int, width: int) -> Tensor:
    scaled = functional.interpolate(
        pictures.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def nearest(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the nearest of ascending values, the earlier at a tie."""
    after = np.clip(np.searchsorted(sorted_values, wanted), 1, max(1, len(sorted_values) - 1))
    after = np.minimum(after, len(sorted_values) - 1)
    before = np.maximum(after - 1, 0)
    closer = wanted - sorted_values[before] <= sorted_values[after] - wanted + 1e-9
    return np.where(closer, before, after)
