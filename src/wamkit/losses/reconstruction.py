"""Distances between a predicted and a true feature grid or image, per element."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ReconstructionKind = Literal["squared", "smooth_l1", "l1"]


def reconstruction(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    kind: ReconstructionKind = "squared",
    *,
    beta: float = 0.1,
) -> Float[Tensor, "*shape"]:
    """Element-wise reconstruction error.

    LaWAM's paper uses ``squared`` (Eq. 4); its released code ``smooth_l1`` with beta 0.1 on LayerNorm-ed features.
    """
    if kind == "squared":
        return (prediction - target).square()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target, beta=beta, reduction="none")
    return (prediction - target).abs()
