"""Either kind of latent action, chosen by its config: LaWAM's or RepWAM's, in any model that takes latent actions."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.dynamics.base import FramePairs, LatentActionError, LatentDynamics, PairLosses, Posterior
from wamkit.dynamics.latent_action import LatentActionConfig, LatentActionModel
from wamkit.dynamics.linear_transition import LatentActionTokenizer, LinearTransitionConfig
from wamkit.losses.reconstruction import ReconstructionKind
from wamkit.nn.running_scale import RunningScale

LatentDynamicsConfig = LatentActionConfig | LinearTransitionConfig


class RestoringDecoder(nn.Module):
    """A forward model that is told latent actions in standard units."""

    def __init__(self, inside: nn.Module, width: int) -> None:
        super().__init__()
        self.inside, self.scale = inside, RunningScale(width)

    def forward(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B N D"]:
        """The predicted future."""
        return self.inside(present, self.scale.restore(latent_action))


class StandardLatentActionModel(LatentActionModel):
    """LaWAM's latent-action model with latent actions of zero mean and unit variance, by running statistics.

    Its divergence weighs so little that nothing holds the scale of its latent actions, and a flow model that starts
    from unit noise wants data of that size. What is trained, and how, is unchanged. There is no state predictor.
    """

    decoder: RestoringDecoder

    def __init__(
        self,
        config: LatentActionConfig,
        grid: tuple[int, int],
        feature_width: int,
        *,
        reconstruction: ReconstructionKind = "squared",
        kl_weight: float = 1e-5,
    ) -> None:
        stateless = replace(config, max_state_dim=0)
        super().__init__(stateless, grid, feature_width, reconstruction=reconstruction, kl_weight=kl_weight)
        self.decoder = RestoringDecoder(self.decoder, config.latent_width)

    def step(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B N D"]:
        """In the posterior's own units."""
        return self.decoder.inside(present, latent_action)

    def infer(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Posterior:
        """As `LatentActionModel.infer`, in standard units."""
        scale, posterior = self.decoder.scale, super().infer(present, future)
        return Posterior(scale.standardise(posterior.mean), posterior.log_variance - 2.0 * scale.deviation.log())

    def losses(self, pairs: FramePairs, generator: torch.Generator | None = None) -> PairLosses:
        """As `LatentActionModel.losses`, to the number; in training the statistics follow the valid pairs."""
        found, scale = super().losses(pairs, generator), self.decoder.scale
        if self.training:
            scale.update(found.latent_action.detach(), pairs.valid)
        return PairLosses(found.terms, scale.standardise(found.latent_action))


def latent_dynamics(
    config: LatentDynamicsConfig,
    grid: tuple[int, int],
    feature_width: int,
    *,
    reconstruction: ReconstructionKind = "squared",
    kl_weight: float = 1e-5,
) -> StandardLatentActionModel | LatentActionTokenizer:
    """The latent-action model that a config names, for a model that learns from frames alone.

    Latent actions of either kind come in standard units. LaWAM itself builds its own `LatentActionModel`, in the
    posterior's units and with the state predictor.

    Args:
        config: Its class says which.
        grid: Rows and columns of the frozen encoder's tokens.
        feature_width: Channels of a token.
        reconstruction: Distance of a predicted to the true future frame.
        kl_weight: Of LaWAM's divergence; RepWAM's latent action is deterministic and has none.
    """
    if isinstance(config, LinearTransitionConfig):
        return LatentActionTokenizer(config, grid, feature_width, reconstruction=reconstruction)
    return StandardLatentActionModel(config, grid, feature_width, reconstruction=reconstruction, kl_weight=kl_weight)


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
