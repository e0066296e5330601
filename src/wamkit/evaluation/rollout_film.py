"""The film of an imagined episode: what was recorded, and beside it what was imagined, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

SIDE = 176
"""Height of a column in pixels, at least: smaller pictures are enlarged."""
BAR, GAP = 18, 4
INK, PAPER = (236, 239, 244), (24, 28, 36)


def side_by_side(columns: Mapping[str, Float[np.ndarray, "3 h w"] | None]) -> np.ndarray:
    """One picture of a film, uint8 [H, W, 3]: pictures in [0, 1] in columns, each under its caption.

    Args:
        columns: Pictures by caption; None where there is none any more.
    """
    from PIL import Image, ImageDraw

    shape = next(picture.shape for picture in columns.values() if picture is not None)
    factor = max(1, -(-SIDE // shape[1]))
    height, width = factor * shape[1], factor * shape[2]
    page = Image.new("RGB", (len(columns) * (width + GAP) - GAP, height + BAR), PAPER)
    draw, font = ImageDraw.Draw(page), _font()
    for number, (caption, picture) in enumerate(columns.items()):
        left = number * (width + GAP)
        draw.text((left + 4, 3), caption, fill=INK, font=font)
        if picture is not None:
            pixels = (picture.transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)
            page.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, BAR))
    return np.asarray(page)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=11)
