"""Several cameras on one picture, as the video models see them, and back.

A video backbone takes one stream of frames. Light-WAM and Fast-WAM put two cameras side by side; for RoboTwin's
three, the head camera is on top and both wrist cameras, at half its size, below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from wamkit.errors import WamkitError

CanvasKind = Literal["single", "side_by_side", "robotwin"]


class CanvasError(WamkitError):
    """Cameras that do not fit the layout."""


@dataclass(frozen=True)
class Slot:
    """Where one camera's picture lies on the canvas, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Canvas:
    """A layout of cameras for frames of one size; `compose` and `split` are each other's inverse.

    Exactly so where a slot has the camera's size, else up to the resize (``robotwin``'s wrist cameras).

    Args:
        kind: ``single``: one camera. ``side_by_side``: any number, left to right. ``robotwin``: three, the first at
            full size over the second and the third at half size.
        cameras: in the layout's order.
        height: of each camera's frames.
        width: likewise.

    Raises:
        CanvasError: the number of cameras or the size does not suit the layout.
    """

    def __init__(self, kind: CanvasKind, cameras: Sequence[str], height: int, width: int) -> None:
        self.kind, self.cameras, self.size = kind, tuple(cameras), (height, width)
        count = len(self.cameras)
        if kind == "single":
            wanted = count == 1
            slots = [Slot(0, 0, height, width)]
        elif kind == "side_by_side":
            wanted = count >= 1
            slots = [Slot(0, i * width, height, width) for i in range(count)]
        else:
            wanted = count == 3 and height % 2 == 0 and width % 2 == 0
            half = (height // 2, width // 2)
            slots = [
                Slot(0, 0, height, width),
                Slot(height, 0, *half),
                Slot(height, width // 2, *half),
            ]
        if not wanted:
            raise CanvasError(
                f"The canvas {kind!r} cannot hold {count} cameras of {height} x {width} pixels: 'single' takes one,"
                " 'side_by_side' any number, 'robotwin' three of even size."
            )
        self.slots = dict(zip(self.cameras, slots, strict=True))
        self.height = max(slot.top + slot.height for slot in slots)
        self.width = max(slot.left + slot.width for slot in slots)

    def __repr__(self) -> str:
        """Names all that the pictures depend on; it keys the latent store."""
        return f"canvas:{self.kind}:{','.join(self.cameras)}:{self.size[0]}x{self.size[1]}"

    def compose(self, pictures: Mapping[str, UInt8[Tensor, "*batch 3 H W"]]) -> UInt8[Tensor, "*batch 3 CH CW"]:
        """The canvas of each frame.

        Raises:
            CanvasError: a camera is missing or has another size.
        """
        for camera in self.cameras:
            if camera not in pictures:
                raise CanvasError(f"The canvas needs camera {camera!r}; there are {', '.join(pictures) or 'none'}.")
            if tuple(pictures[camera].shape[-2:]) != self.size:
                raise CanvasError(
                    f"Camera {camera!r} has {tuple(pictures[camera].shape[-2:])} pixels, the model takes {self.size}:"
                    " set the data set's resolution to the model's."
                )
        if self.kind == "single":
            return pictures[self.cameras[0]]
        first = pictures[self.cameras[0]]
        canvas = torch.zeros((*first.shape[:-2], self.height, self.width), dtype=first.dtype, device=first.device)
        for camera, slot in self.slots.items():
            picture = _resized(pictures[camera], slot.height, slot.width)
            canvas[..., slot.top : slot.top + slot.height, slot.left : slot.left + slot.width] = picture
        return canvas

    def split(self, canvas: UInt8[Tensor, "*batch 3 CH CW"]) -> dict[str, UInt8[Tensor, "*batch 3 H W"]]:
        """Each camera's picture at its own size."""
        if tuple(canvas.shape[-2:]) != (self.height, self.width):
            raise CanvasError(f"A canvas has {(self.height, self.width)} pixels, got {tuple(canvas.shape[-2:])}.")
        cut = {
            camera: canvas[..., slot.top : slot.top + slot.height, slot.left : slot.left + slot.width]
            for camera, slot in self.slots.items()
        }
        return {camera: _resized(picture, *self.size) for camera, picture in cut.items()}


def _resized(pictures: Tensor, height: int, width: int) -> Tensor:
    if tuple(pictures.shape[-2:]) == (height, width):
        return pictures
    flat = pictures.flatten(0, -4).float() if pictures.ndim > 4 else pictures.float()
    flat = flat if flat.ndim == 4 else flat.unsqueeze(0)
    resized = functional.interpolate(flat, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(pictures.dtype).view(*pictures.shape[:-2], height, width)
