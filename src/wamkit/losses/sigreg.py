"""SIGReg: sketched isotropic Gaussian regularisation (LeJEPA; LeWorldModel, arXiv 2603.19312).

Embeddings are projected on random directions; on each, the empirical characteristic function is compared
with that of N(0, 1) (the Epps-Pulley test). Zero means that no direction tells the embeddings from an
isotropic Gaussian: nothing has collapsed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sigreg(
    embeddings: Float[Tensor, "M D"], directions: Float[Tensor, "D P"], *, knots: int = 17, reach: float = 3.0
) -> Float[Tensor, "P"]:
    """Epps-Pulley distance of the projected embeddings to N(0, 1), for each direction.

    Args:
        embeddings: M samples of width D.
        directions: P unit vectors as columns; draw them anew at each step.
        knots: points of the trapezoid rule on [0, reach] (17 in LeWorldModel).
        reach: the largest frequency compared.
    """
    frequency = torch.linspace(0.0, reach, knots, device=embeddings.device, dtype=torch.float32)
    gaussian = torch.exp(-0.5 * frequency.square())
    spacing = reach / (knots - 1)
    trapezoid = torch.full_like(frequency, 2.0 * spacing)
    trapezoid[0] = trapezoid[-1] = spacing
    phase = (embeddings.float() @ directions.float()).unsqueeze(-1) * frequency
    difference = (phase.cos().mean(dim=0) - gaussian).square() + phase.sin().mean(dim=0).square()
    return (difference * gaussian * trapezoid).sum(dim=-1) * embeddings.shape[0]


def random_directions(
    width: int, count: int, *, device: torch.device | str, generator: torch.Generator | None = None
) -> Float[Tensor, "D P"]:
    """Unit vectors drawn evenly from the sphere, as columns."""
    directions = torch.randn(width, count, device=device, generator=generator)
    return directions / directions.norm(dim=0, keepdim=True)
