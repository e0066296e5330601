"""Random crop and colour, the same for every frame of a sample: what makes two views of one motion.

LaWAM's latent-action model infers from one view and predicts in the other, so that a latent action cannot carry the
layout of pixels (appendix C.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from wamkit.data.draws import mix
from wamkit.errors import WamkitError

_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


@dataclass(frozen=True)
class Augmentation:
    """A distribution of crops and colours; called with a seed, one draw of it for all frames.

    The seed alone fixes the draw. ``repr`` names all of it, which keys the feature store.
    """

    area: tuple[float, float] = (0.8, 1.0)
    """Range of the crop's share of the picture."""
    aspect: tuple[float, float] = (0.9, 1.1)
    """Range of the crop's width over height, relative to the picture's."""
    brightness: float = 0.2
    """Factor drawn from 1 -/+ this; 0 leaves it."""
    contrast: float = 0.2
    """The same, about the mean gray of each frame."""
    saturation: float = 0.2
    """The same, about each pixel's gray."""
    hue: float = 0.02
    """Turn of the colour wheel drawn from -/+ this, in whole turns."""

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise WamkitError(
                f"area {self.area} and aspect {self.aspect} must be ascending and positive, area at most 1."
            )
        if not all(0 <= value <= 1 for value in (self.brightness, self.contrast, self.saturation, self.hue)):
            raise WamkitError("brightness, contrast, saturation and hue lie in [0, 1].")

    def __call__(self, frames: UInt8[Tensor, "n 3 H W"], seed: int) -> UInt8[Tensor, "n 3 H W"]:
        """One draw for all frames of an episode."""
        # Hashed, since torch's generator reads only the lower half of a seed.
        generator = torch.Generator().manual_seed(int(mix(seed)) & 0x7FFFFFFF)
        return self.apply(frames.unsqueeze(0), generator).squeeze(0)

    @torch.no_grad()
    def apply(
        self, frames: UInt8[Tensor, "B T 3 H W"], generator: torch.Generator | None = None
    ) -> UInt8[Tensor, "B T 3 H W"]:
        """One draw for each sample, the same for its T frames.

        Args:
            frames: On any device.
            generator: On the CPU, where the draw is the same whatever the frames' device, or on that device, where
                nothing waits for it; None: torch's own of the CPU.

        Returns:
            New frames of the same size.
        """
        samples, steps = frames.shape[:2]
        device = frames.device
        boxes, colours = (drawn.repeat_interleave(steps, dim=0).to(device) for drawn in self._draw(samples, generator))
        with torch.autocast(device.type, enabled=False):  # half precision has fewer steps than a picture has
            flat = frames.flatten(0, 1).float() / 255.0
            flat = _jitter(_crop_resized(flat, boxes), colours)
            return (flat * 255.0).round_().clamp_(0, 255).to(torch.uint8).unflatten(0, (samples, steps))

    def _draw(
        self, samples: int, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "B 4"], Float[Tensor, "B 4"]]:
        """(crop's centre x, y and half width, half height, the picture being [-1, 1]; brightness to hue)."""
        device = torch.device("cpu") if generator is None else generator.device
        uniform = torch.rand(samples, 8, generator=generator, device=device)
        area = self.area[0] + uniform[:, 0] * (self.area[1] - self.area[0])
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        aspect = (low + uniform[:, 1] * (high - low)).exp()
        width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
        x, y = (2 * uniform[:, 2] - 1) * (1 - width), (2 * uniform[:, 3] - 1) * (1 - height)
        spread = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], device=device)
        middle = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device)
        return torch.stack([x, y, width, height], dim=1), middle + (2 * uniform[:, 4:] - 1) * spread


def _crop_resized(pictures: Float[Tensor, "n 3 H W"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 H W"]:
    x, y, width, height = boxes.unbind(1)
    zero = torch.zeros_like(x)
    matrix = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jitter(pictures: Float[Tensor, "n 3 H W"], colours: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 H W"]:
    brightness, contrast, saturation, hue = (part[:, None, None, None] for part in colours.unbind(1))
    luma = torch.tensor(_GRAY, device=pictures.device)[:, None, None]
    pictures = (pictures * brightness).clamp(0, 1)
    mean = (pictures * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pictures = (mean + (pictures - mean) * contrast).clamp(0, 1)
    gray = (pictures * luma).sum(1, keepdim=True)
    pictures = (gray + (pictures - gray) * saturation).clamp(0, 1)
    return _turn_hue(pictures, hue[:, 0, 0, 0])


def _turn_hue(pictures: Float[Tensor, "n 3 H W"], turn: Float[Tensor, "n"]) -> Float[Tensor, "n 3 H W"]:
    """A rotation about the gray axis (1, 1, 1), which needs no detour over HSV (Rodrigues' formula)."""
    angle = 2 * math.pi * turn
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None] / math.sqrt(3.0)
    identity = torch.eye(3, device=pictures.device)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=pictures.device)
    rotation = cosine * identity + sine * cross + (1 - cosine) / 3.0
    return torch.einsum("nij,njhw->nihw", rotation, pictures).clamp(0, 1)


def random_shift(
    frames: UInt8[Tensor, "B 3 H W"], pixels: int, generator: torch.Generator | None = None
) -> UInt8[Tensor, "B 3 H W"]:
    """Each picture moved by up to ``pixels`` in both directions, its edge repeated (DrQ, arXiv 2004.13649).

    Args:
        frames: On any device.
        pixels: The largest shift; 0 returns the frames as they are.
        generator: On the frames' device.
    """
    if pixels == 0:
        return frames
    batch, _, height, width = frames.shape
    device = frames.device
    offset = torch.randint(-pixels, pixels + 1, (2, batch, 1), device=device, generator=generator)
    rows = (torch.arange(height, device=device) + offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offset[1]).clamp(0, width - 1)
    sample = torch.arange(batch, device=device)[:, None, None]
    return frames.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
