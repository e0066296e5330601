"""Losses of latent-action models (LaWAM Eq. 4 and 5), per sample."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def kl_to_standard_normal(mean: Float[Tensor, "B Q Z"], log_variance: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B"]:
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over dimensions and averaged over tokens."""
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return kl.sum(dim=-1).mean(dim=-1)


def distillation(student: Float[Tensor, "B Q Z"], teacher_mean: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B"]:
    """Mean squared distance of the policy's latent action to the posterior's mean (LaWAM Eq. 5, first term).

    The teacher is a target: no gradient reaches it.
    """
    return (student - teacher_mean.detach()).square().flatten(1).mean(dim=1)


def antisymmetry(forward: Float[Tensor, "B Q Z"], backward: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B"]:
    """Mean squared sum of a pair's latent action and its reversed pair's: zero where one is the other's negative."""
    return (forward + backward).square().flatten(1).mean(dim=1)
