"""Alignment of a tokenizer's latents with a frozen encoder's features, both averaged over time (arXiv 2606.13674)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from wamkit.losses.reduction import sample_mean


def time_averaged_alignment(
    projected: Float[Tensor, "B F N D"], targets: Float[Tensor, "B P N D"]
) -> Float[Tensor, "B"]:
    """||avg_t(W z) - avg_t(G(o))||^2, as a mean over tokens and channels.

    The paper does not say whether the norm is summed or averaged; the mean keeps its weight of 1 comparable to the
    absolute pixel error beside it, whatever the target's width. Only averages meet, so the F latent frames may stand
    for another number of pictures P. No gradient reaches the targets.
    """
    difference = projected.float().mean(dim=1) - targets.detach().float().mean(dim=1)
    return sample_mean(difference.square())
