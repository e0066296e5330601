"""Fixed position codes: sin/cos over grids of space and time, and over physical time in seconds."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sincos(
    positions: Float[Tensor, "*shape"], width: int, *, max_period: float = 1e4, endpoint: bool = False
) -> Float[Tensor, "*shape D"]:
    """Sines, then cosines, of ``positions`` at width/2 frequencies from 1 down to 1/max_period.

    Args:
        positions: any shape.
        width: D, even.
        max_period: longest wavelength over 2 pi.
        endpoint: whether the slowest frequency is 1/max_period itself, or one step short of it.

    Raises:
        ValueError: ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"a sin/cos code needs an even width, got {width}")
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions.device) / max(half - endpoint, 1)
    phase = positions.float().unsqueeze(-1) * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def grid_sincos(shape: tuple[int, ...], width: int) -> Float[Tensor, "N D"]:
    """Code of each cell of a grid (h, w) or (t, h, w), row-major, its axes sharing the width about equally."""
    axes = len(shape)
    part = width // axes // 2 * 2
    parts = [part] * (axes - 1) + [width - part * (axes - 1)]
    coordinates = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    codes = [sincos(axis.flatten(), size) for axis, size in zip(coordinates, parts, strict=True)]
    return torch.cat(codes, dim=-1)


def overlaid_grid_sincos(shape: tuple[int, ...], width: int) -> Float[Tensor, "N D"]:
    """The code of LaWAM's released LAM: the axes' codes are added up, each from the first channel on.

    Sine and cosine alternate. The first axis fills half of the channels, the others lie on top of it, so the
    upper channels carry no code and in two dimensions the cells (i, j) and (j, i) share one. Only for weights
    that were trained with it.
    """
    sizes = [width // 2, *[width // 4] * (len(shape) - 2)]
    sizes.append(width - sum(sizes))
    code = torch.zeros(*shape, width)
    for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
        sines, cosines = sincos(torch.arange(length, dtype=torch.float32), size).chunk(2, dim=-1)
        alternating = torch.stack([sines, cosines], dim=-1).flatten(-2)
        code[..., :size] += alternating.view(length, *[1] * (len(shape) - axis - 1), size)
    return code.flatten(0, -2)


def seconds_code(
    times: Float[Tensor, "*shape"], width: int, *, unit_s: float = 1.0, max_period: float = 1e4
) -> Float[Tensor, "*shape D"]:
    """Physical-time code of LaWAM (appendix C.3, Eq. 7): sin/cos of the elapsed time.

    Args:
        times: seconds since the observation.
        width: D.
        unit_s: how many seconds count as one unit of position. The paper's is 1 s; chunks much shorter than
            a second are told apart better by a smaller unit.
        max_period: longest wavelength over 2 pi, in units.
    """
    return sincos(times / unit_s, width, max_period=max_period, endpoint=True)
