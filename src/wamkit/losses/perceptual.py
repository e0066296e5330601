"""How unlike two pictures look to a classification network (LPIPS, arXiv 1801.03924), per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def perceptual_distance(
    made: Sequence[Float[Tensor, "B _ _ _"]],
    real: Sequence[Float[Tensor, "B _ _ _"]],
    weights: Sequence[Float[Tensor, "_"]],
) -> Float[Tensor, "B"]:
    """Weighted squared distance of features of unit length, averaged over places and added over layers.

    Args:
        made: Features of one set of pictures, a tensor [B, C, h, w] for each layer.
        real: Of the other set, from the same layers.
        weights: A weight for each channel of each layer, [C], not negative.
    """
    distances = []
    for one, other, weight in zip(made, real, weights, strict=True):
        squared = (_unit_length(one) - _unit_length(other)).square()
        distances.append((squared * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(distances).sum(dim=0)


def _unit_length(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    # Inside the root, as torchmetrics has it: the gradient of a place without any feature is then finite.
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
