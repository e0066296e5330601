"""Conditional flow matching, in wamkit's one convention.

``noise_level`` s is 0 at the data and 1 at the noise; the path is x_s = (1 - s) x + s e. The velocity is
named for its direction: towards the data it is x - e (LaWAM, RepWAM), towards the noise e - x (Fast-WAM,
Light-WAM, Motus, pi0), one the negative of the other.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    clean: Float[Tensor, "*batch K A"], noise: Float[Tensor, "*batch K A"], noise_level: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch K A"]:
    """The point of the straight path at ``noise_level``: x_s = (1 - s) clean + s noise."""
    level = noise_level[..., None, None]
    return (1.0 - level) * clean + level * noise


def velocity_to_data(
    clean: Float[Tensor, "*batch K A"], noise: Float[Tensor, "*batch K A"]
) -> Float[Tensor, "*batch K A"]:
    """What a network that points at the data must predict: clean - noise."""
    return clean - noise


def velocity_to_noise(
    clean: Float[Tensor, "*batch K A"], noise: Float[Tensor, "*batch K A"]
) -> Float[Tensor, "*batch K A"]:
    """What a network that points at the noise must predict: noise - clean."""
    return noise - clean


def beta_noise_level(
    uniform: Float[Tensor, "*batch"], *, alpha: float = 1.5, ceiling: float = 0.999
) -> Float[Tensor, "*batch"]:
    """Noise levels of pi0 and LaWAM: data time t = ceiling * (1 - b) with b ~ Beta(alpha, 1), and s = 1 - t.

    Takes uniform draws on [0, 1): the inverse CDF of Beta(alpha, 1) is u**(1/alpha), so the same random
    numbers give the same levels on every device.
    """
    return 1.0 - ceiling * (1.0 - uniform.pow(1.0 / alpha))


def shifted_noise_level(uniform: Float[Tensor, "*batch"], *, shift: float = 5.0) -> Float[Tensor, "*batch"]:
    """Noise levels of Wan, Fast-WAM and Light-WAM: s = shift u / (1 + (shift - 1) u)."""
    return shift * uniform / (1.0 + (shift - 1.0) * uniform)


def euler_levels(steps: int, device: torch.device | str | None = None) -> Float[Tensor, "steps_and_one"]:
    """The noise levels that ``steps`` Euler steps visit, from 1 (noise) to 0 (data)."""
    return torch.linspace(1.0, 0.0, steps + 1, device=device)


def squared_error(
    prediction: Float[Tensor, "*batch K A"], target: Float[Tensor, "*batch K A"]
) -> Float[Tensor, "*batch K A"]:
    """The flow-matching loss of each element."""
    return (prediction - target).square()


def shifted_euler_levels(
    steps: int, *, shift: float = 5.0, device: torch.device | str | None = None
) -> Float[Tensor, "steps_and_one"]:
    """`euler_levels` under Wan's shift: the steps lie closer together near the noise."""
    return shifted_noise_level(euler_levels(steps, device), shift=shift)


def bell_weight(noise_level: Float[Tensor, "*batch"], *, shift: float = 5.0) -> Float[Tensor, "*batch"]:
    """Weight of a training sample at its noise level, as Fast-WAM and Light-WAM have it.

    A bell exp(-2 (s - 1/2)^2), lowered so that its least value over Wan's 1000 training levels is 0, and scaled so
    that its mean over them is 1: nothing at pure noise and at the data, most half-way between.
    """
    levels = shifted_noise_level(torch.linspace(1.0, 0.001, 1000, dtype=torch.float64), shift=shift)
    grid = torch.exp(-2.0 * (levels - 0.5).square())
    least = grid.min()
    scale = float((grid - least).mean())
    return (torch.exp(-2.0 * (noise_level - 0.5).square()) - float(least)) / scale
