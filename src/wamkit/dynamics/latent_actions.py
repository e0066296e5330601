"""Either kind of latent action, chosen by its config: LaWAM's or RepWAM's, in any model that takes latent actions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from wamkit.dynamics.base import LatentActionError, LatentDynamics
from wamkit.dynamics.latent_action import LatentActionConfig, LatentActionModel
from wamkit.dynamics.linear_transition import LatentActionTokenizer, LinearTransitionConfig
from wamkit.losses.reconstruction import ReconstructionKind

LatentDynamicsConfig = LatentActionConfig | LinearTransitionConfig


def latent_dynamics(
    config: LatentDynamicsConfig,
    grid: tuple[int, int],
    feature_width: int,
    *,
    reconstruction: ReconstructionKind = "squared",
    kl_weight: float = 1e-5,
) -> LatentActionModel | LatentActionTokenizer:
    """The latent-action model that a config names.

    Args:
        config: Its class says which.
        grid: Rows and columns of the frozen encoder's tokens.
        feature_width: Channels of a token.
        reconstruction: Distance of a predicted to the true future frame.
        kl_weight: Of LaWAM's divergence; RepWAM's latent action is deterministic and has none.
    """
    if isinstance(config, LinearTransitionConfig):
        return LatentActionTokenizer(config, grid, feature_width, reconstruction=reconstruction)
    return LatentActionModel(config, grid, feature_width, reconstruction=reconstruction, kl_weight=kl_weight)


def infer_along(model: LatentDynamics, frames: Float[Tensor, "B F N D"]) -> Float[Tensor, "B G Q Z"]:
    """The latent action between each frame of a clip and the next, G = F - 1: what a model is pretrained on.

    Raises:
        LatentActionError: the clips have fewer than two frames.
    """
    if frames.shape[1] < 2:
        raise LatentActionError(
            f"a latent action lies between two frames, and these clips have {frames.shape[1]}: use longer windows"
        )
    inferred = model.infer(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)).mean
    return inferred.unflatten(0, (len(frames), -1))


def predict_along(
    model: LatentDynamics, present: Float[Tensor, "B N D"], latent_actions: Float[Tensor, "B G Q Z"]
) -> Float[Tensor, "B G N D"]:
    """Open loop: each step from the last prediction, under one latent action each."""
    frames, current = [], present
    for step in range(latent_actions.shape[1]):
        current = model.decoder(current, latent_actions[:, step])
        frames.append(current)
    return torch.stack(frames, dim=1)
