"""Where each token of a causal sequence stands: rotary codes of video tokens and of the actions between frames.

Video tokens stand at (frame, row, column), as in Wan. Action j of the n that lead to a frame stands at
(frame + (j + 1) / (n + 1), -1, -1), as in LingBot-VA's released code: between its frame and the next on the axis of
time, outside the picture on the others. RepWAM's paper does not say; it gets the same. Rotary attention sees
differences alone, so an episode may count its frames on and on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wamkit.dynamics.wan_block import Rotary

THETA = 1e4


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Channels of a head for time, height and width: Wan's shares.

    Raises:
        ValueError: the head is too narrow for three axes.
    """
    spatial = 2 * (head_width // 6)
    if spatial < 2 or head_width % 2:
        raise ValueError(f"a head of {head_width} channels cannot hold codes of time, height and width: use 6 or more")
    return head_width - 2 * spatial, spatial, spatial


def rotary_at(positions: Float[Tensor, "*batch N 3"], head_width: int) -> Rotary:
    """Cosines and sines at (time, row, column); with a batch, each sample's own, ready for all of its heads."""
    positions = positions.double()
    angles = []
    for axis, width in enumerate(axis_widths(head_width)):
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
        angles.append(positions[..., axis : axis + 1] * THETA**-exponent)
    angle = torch.cat(angles, dim=-1)
    if angle.ndim == 3:
        angle = angle.unsqueeze(1)
    return Rotary(angle.cos().float(), angle.sin().float())


def video_positions(frames: Int[Tensor, "*batch F"], rows: int, columns: int) -> Float[Tensor, "*batch N 3"]:
    """Of the tokens of each frame, row by row."""
    device = frames.device
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    cells = torch.stack([row.flatten(), column.flatten()], dim=-1).expand(*frames.shape, -1, -1)
    time = frames[..., None, None].expand(*cells.shape[:-1], 1)
    return torch.cat([time, cells], dim=-1).flatten(-3, -2).double()


def action_positions(
    frames: Int[Tensor, "*batch F"], slots: int, steps: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch N 3"]:
    """Of the actions that lead to each frame.

    Args:
        frames: their numbers.
        slots: actions of a frame, padding included.
        steps: how many of them are real, by sample; slot j stands at its physical time whatever the padding.
    """
    slot = torch.arange(1, slots + 1, device=frames.device, dtype=torch.float64)
    within = slot / (steps[..., None].double() + 1.0)
    time = frames[..., :, None].double() + within[..., None, :]
    outside = torch.full_like(time, -1.0)
    return torch.stack([time, outside, outside], dim=-1).flatten(-3, -2)
