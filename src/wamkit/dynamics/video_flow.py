"""Future video by flow matching in a VAE's latents: the loss, the sampler, and the down-sampled latent.

The first latent frame is the present: it stays clean, has noise level 0, and is no part of the loss (papers.md 2.4).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.errors import MisfitError
from wamkit.losses import flow_matching
from wamkit.losses.reduction import masked_mean

Pooling = Literal["mean", "max", "strided"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(latents [B, C, F, h, w], noise_level [B, F])``: towards the noise, of all frames."""


def downsample(latents: Float[Tensor, "B C F h w"], factor: int, pooling: Pooling = "mean") -> Tensor:
    """Latents of a coarser grid: each ``factor`` x ``factor`` cells become one.

    Light-WAM supervises future video at factor 2 by mean pooling; the others are what its reviewers asked about.

    Raises:
        MisfitError: the grid is no multiple of the factor.
    """
    if factor == 1:
        return latents
    if latents.shape[-2] % factor or latents.shape[-1] % factor:
        raise MisfitError(f"latents of {tuple(latents.shape[-2:])} cells cannot be down-sampled by {factor}")
    if pooling == "strided":
        return latents[..., ::factor, ::factor].contiguous()
    pool = F.avg_pool3d if pooling == "mean" else F.max_pool3d
    return pool(latents, kernel_size=(1, factor, factor))


def latent_frame_valid(frame_valid: Bool[Tensor, "B T"], per_latent: int = 4) -> Bool[Tensor, "B F"]:
    """Which latent frames speak of something recorded: those with at least one such picture (as published)."""
    later = frame_valid[:, 1:].unflatten(1, (-1, per_latent)).any(dim=2)
    return torch.cat([frame_valid[:, :1], later], dim=1)


def levels_of_frames(noise_level: Float[Tensor, "B"], frames: int) -> Float[Tensor, "B F"]:
    """One noise level for all frames but the present's, whose level is 0."""
    levels = noise_level.unsqueeze(1).repeat(1, frames)
    levels[:, 0] = 0.0
    return levels


def noisy_video(
    latents: Float[Tensor, "B C F h w"], noise: Float[Tensor, "B C F h w"], levels: Float[Tensor, "B F"]
) -> Float[Tensor, "B C F h w"]:
    """Each frame at its own noise level."""
    clean, drawn = (x.transpose(1, 2).flatten(3) for x in (latents, noise))
    mixed = flow_matching.interpolate(clean, drawn, levels)
    return mixed.unflatten(3, latents.shape[-2:]).transpose(1, 2)


def future_loss(
    predicted: Float[Tensor, "B C F h w"],
    latents: Float[Tensor, "B C F h w"],
    noise: Float[Tensor, "B C F h w"],
    noise_level: Float[Tensor, "B"],
    valid: Bool[Tensor, "B F"],
    *,
    shift: float,
) -> tuple[Float[Tensor, "B"], Bool[Tensor, "B"]]:
    """Weighted squared error of the velocity over the future frames of each sample, and which samples have any.

    Args:
        predicted: velocity towards the noise.
        latents: clean.
        noise: drawn.
        noise_level: of the future frames.
        valid: which latent frames were recorded.
        shift: of the schedule, which the weight belongs to.
    """
    error = flow_matching.squared_error(predicted[:, :, 1:].float(), (noise - latents)[:, :, 1:].float())
    mask = valid[:, None, 1:, None, None].expand_as(error)
    value, has_any = masked_mean(error, mask)
    return value * flow_matching.bell_weight(noise_level, shift=shift), has_any & valid[:, 0]


def draw_levels(
    batch: int, device: torch.device | str, generator: torch.Generator | None, *, shift: float
) -> Float[Tensor, "B"]:
    """Shifted noise levels, one for each sample."""
    return flow_matching.shifted_noise_level(torch.rand(batch, generator=generator, device=device), shift=shift)


@torch.no_grad()
def sample_future(
    velocity: Velocity,
    present: Float[Tensor, "B C 1 h w"],
    noise: Float[Tensor, "B C F h w"],
    *,
    steps: int,
    shift: float,
) -> Float[Tensor, "B C F h w"]:
    """Euler steps from noise to the frames after the present; the present stays as it is."""
    frames = noise.shape[2]
    x = torch.cat([present, noise[:, :, 1:]], dim=2)
    levels = flow_matching.shifted_euler_levels(steps, shift=shift, device=noise.device)
    for now, following in pairwise(levels):
        towards_noise = velocity(x, levels_of_frames(now.expand(len(x)), frames))
        x = torch.cat([present, (x + (following - now) * towards_noise)[:, :, 1:]], dim=2)
    return x
