"""A linear layer with its own weights for each embodiment."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class EmbodimentLinear(nn.Module):
    """One (in, out) weight and bias for each embodiment, picked by id (the category-specific linear of GR00T)."""

    def __init__(self, embodiments: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embodiments, width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(embodiments, width_out))
        bound = 1.0 / math.sqrt(width_in)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "B N width_in"], embodiment: Int[Tensor, "B"]) -> Float[Tensor, "B N width_out"]:
        """Apply to each sample the layer of its embodiment."""
        return torch.baddbmm(self.bias[embodiment].unsqueeze(1), x, self.weight[embodiment])
