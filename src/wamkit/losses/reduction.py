"""From values per element to values per sample, under a mask. Batches are reduced by the trainer alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "B *rest"], mask: Bool[Tensor, "B *rest"]
) -> tuple[Float[Tensor, "B"], Bool[Tensor, "B"]]:
    """Mean of each sample's valid elements, and which samples have any.

    A masked element may hold anything, NaN included: it reaches neither the value nor the gradient.
    """
    values, mask = values.flatten(1), mask.flatten(1)
    count = mask.sum(dim=1)
    total = torch.where(mask, values, 0.0).sum(dim=1)
    return total / count.clamp(min=1), count > 0


def sample_mean(values: Float[Tensor, "B *rest"]) -> Float[Tensor, "B"]:
    """Mean of each sample's elements."""
    return values.flatten(1).mean(dim=1)
