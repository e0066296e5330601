"""The latent-action model (LAM) and its forward decoder, the latent world model (LaWM).

LaWAM (arXiv 2606.15768) section 3.2 and appendix C.1; dimensions in papers.md 1.3. The encoder infers which
latent action led from one feature grid to another; the decoder, given the present and a latent action, predicts
the future grid. The decoder alone is LaWM: a world model that can be rolled out by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wamkit.dynamics.base import FramePairs, LatentDynamics, PairLosses, Posterior
from wamkit.losses.latent_action import kl_to_standard_normal
from wamkit.losses.reconstruction import ReconstructionKind, reconstruction
from wamkit.losses.reduction import sample_mean
from wamkit.nn.adaln import AdaLNZeroBlock
from wamkit.nn.attention import Attention
from wamkit.nn.embodiment_linear import EmbodimentLinear
from wamkit.nn.feed_forward import FeedForward
from wamkit.nn.position import grid_sincos, overlaid_grid_sincos
from wamkit.nn.transformer_block import TransformerBlock
from wamkit.types import LossTerm

__all__ = ["LatentActionConfig", "LatentActionModel", "LatentWorldModel", "Posterior"]


@dataclass(frozen=True)
class LatentActionConfig:
    """Dimensions of the LAM; the defaults are the released ones (24 encoder, 12 decoder layers)."""

    kind: ClassVar[str] = "latent_action_model"
    width: int = 1024
    heads: int = 16
    encoder_layers: int = 24
    decoder_layers: int = 12
    """The paper's text reads as 24 for both; 230M parameters fit 12 (papers.md 1.9)."""
    latent_width: int = 32
    queries: int = 1
    max_state_dim: int = 14
    """Of the state whose change the latent action is to explain as well; 0: no state is asked for."""
    embodiments: int = 32
    position_code: Literal["separate", "overlaid"] = "separate"
    """``separate``: each axis has channels of its own. ``overlaid``: the released code, in which they overlap."""
    state_readout: Literal["per_embodiment", "shared"] = "per_embodiment"
    """Read-out of the state predictor: one for each embodiment as released, or one for all (a third of the size)."""


def _position(config: LatentActionConfig, shape: tuple[int, ...]) -> Float[Tensor, "N D"]:
    code = overlaid_grid_sincos if config.position_code == "overlaid" else grid_sincos
    return code(shape, config.width)


class QueryStart(nn.Module):
    """Learned queries that read the patches once, before they join them: x = LN(q + attention), x + feed-forward."""

    def __init__(self, queries: int, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.context_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.query_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ratio=1.0)

    def forward(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q D"]:
        """The queries of each sample."""
        query = self.query.expand(patches.shape[0], -1, -1).to(patches.dtype)
        read = self.attention(query, self.attention.project(self.context_norm(patches)))
        x = self.query_norm(query + read)
        return x + self.feed_forward(x)


class InverseDynamicsEncoder(nn.Module):
    """q(z | u, u_T): a joint space-time transformer over both grids, read by learned queries.

    Block mask: patches attend to patches, a query attends to everything.
    """

    def __init__(self, config: LatentActionConfig, grid: tuple[int, int], feature_width: int) -> None:
        super().__init__()
        tokens = 2 * grid[0] * grid[1]
        self.enter = nn.Linear(feature_width, config.width)
        self.register_buffer("position", _position(config, (2, *grid)), persistent=False)
        self.start = QueryStart(config.queries, config.width, config.heads)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, activation="relu", eps=1e-5)
            for _ in range(config.encoder_layers)
        )
        self.leave = nn.Linear(config.width, config.latent_width)
        mask = torch.ones(tokens + config.queries, tokens + config.queries, dtype=torch.bool)
        mask[:tokens, tokens:] = False
        self.register_buffer("mask", mask[None, None], persistent=False)

    def forward(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q Z"]:
        """One embedding for each query, before the Gaussian head."""
        x = self.enter(torch.cat([present, future], dim=1)) + self.position
        tokens = x.shape[1]
        x = torch.cat([x, self.start(x)], dim=1)
        for block in self.blocks:
            x = block(x, self.mask)
        return self.leave(x[:, tokens:])


class GaussianHead(nn.Module):
    """LayerNorm, then mean and log variance, the latter clamped to +-10."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mean = nn.Linear(width, width)
        self.log_variance = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B Q Z"]) -> Posterior:
        """The posterior of each query."""
        x = self.norm(x)
        return Posterior(self.mean(x), self.log_variance(x).clamp(-10.0, 10.0))


class LatentWorldModel(nn.Module):
    """LaWM: the present's feature grid and a latent action to the future's grid, in one pass (Eq. 2)."""

    def __init__(self, config: LatentActionConfig, grid: tuple[int, int], feature_width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(feature_width, config.width)
        self.register_buffer("position", _position(config, grid), persistent=False)
        self.condition = nn.Linear(config.latent_width, config.width)
        self.blocks = nn.ModuleList(AdaLNZeroBlock(config.width, config.heads) for _ in range(config.decoder_layers))
        self.leave = nn.Linear(config.width, feature_width)
        self.norm = nn.LayerNorm(feature_width)
        self._start_near_the_present()

    def _start_near_the_present(self) -> None:
        """Initial weights that predict about the present: the scene mostly stays as it is.

        The projections start as each other's inverse (the published weights overwrite them). The features enter
        amplified, so that the position code is small beside them and nearly vanishes on the way out.
        """
        gain = 4.0
        rotation = torch.empty_like(self.enter.weight)
        nn.init.orthogonal_(rotation)
        with torch.no_grad():
            self.enter.weight.copy_(gain * rotation)
            self.leave.weight.copy_(rotation.T / gain)
            self.enter.bias.zero_()
            self.leave.bias.zero_()

    def forward(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B N D"]:
        """The predicted grid one horizon ahead, in the encoder's own (LayerNorm-ed) space."""
        x = self.enter(present) + self.position
        condition = self.condition(latent_action).mean(dim=1)
        for block in self.blocks:
            x = block(x, condition)
        return self.norm(self.leave(x))


class StateChangePredictor(nn.Module):
    """Training aid: the latent action and the current state to the state's change; thrown away afterwards.

    One state encoder for each embodiment, since state dimensions mean different things; so the read-out, unless
    it is shared.
    """

    def __init__(self, config: LatentActionConfig) -> None:
        super().__init__()
        self.latent = nn.Linear(config.latent_width, config.width)
        self.state_in = EmbodimentLinear(config.embodiments, config.max_state_dim, config.width)
        self.state_hidden = EmbodimentLinear(config.embodiments, config.width, config.width)
        self.max_state_dim, self.shared = config.max_state_dim, config.state_readout == "shared"
        readouts = 1 if self.shared else config.embodiments
        self.joint = EmbodimentLinear(readouts, 2 * config.width, config.width)
        self.leave = EmbodimentLinear(readouts, config.width, config.max_state_dim)

    def forward(
        self, latent_action: Float[Tensor, "B Q Z"], state: Float[Tensor, "B S"], embodiment: Int[Tensor, "B"]
    ) -> Float[Tensor, "B S"]:
        """The predicted change of the normalised state over the horizon, in (-1, 1)."""
        code = nn.functional.relu(self.state_in(state.unsqueeze(1), embodiment))
        code = self.state_hidden(code, embodiment)
        joint = torch.cat([self.latent(latent_action.mean(dim=1, keepdim=True)), code], dim=-1)
        readout = torch.zeros_like(embodiment) if self.shared else embodiment
        joint = nn.functional.relu(self.joint(joint, readout))
        return torch.tanh(self.leave(joint, readout)).squeeze(1)


class LatentActionModel(LatentDynamics):
    """Encoder, Gaussian head, forward decoder and the state predictor of stage ``latent_action``.

    ``reconstruction`` and ``kl_weight`` are those of LaWAM Eq. 4.
    """

    reconstruction: ReconstructionKind

    def __init__(
        self,
        config: LatentActionConfig,
        grid: tuple[int, int],
        feature_width: int,
        *,
        reconstruction: ReconstructionKind = "squared",
        kl_weight: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config, self.reconstruction, self.kl_weight = config, reconstruction, kl_weight
        self.encoder = InverseDynamicsEncoder(config, grid, feature_width)
        self.posterior = GaussianHead(config.latent_width)
        self.decoder = LatentWorldModel(config, grid, feature_width)
        self.state_predictor = StateChangePredictor(config) if config.max_state_dim > 0 else None

    @property
    def queries(self) -> int:
        """Q, 1 in the released model."""
        return self.config.queries

    @property
    def latent_width(self) -> int:
        """Z, 32 in the released model."""
        return self.config.latent_width

    def infer(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Posterior:
        """Inverse dynamics: the posterior over the latent action between two feature grids."""
        return self.posterior(self.encoder(present, future))

    def step(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B N D"]:
        """The forward model in the posterior's own units."""
        return self.decoder(present, latent_action)

    def losses(self, pairs: FramePairs, generator: torch.Generator | None = None) -> PairLosses:
        """``reconstruction`` and ``kl`` (LaWAM Eq. 4 without its state, which a model adds from ``latent_action``)."""
        posterior = self.posterior(self.encoder(pairs.present, pairs.future))
        noise = torch.randn(posterior.mean.shape, generator=generator, device=posterior.mean.device)
        latent = posterior.sample(noise.to(posterior.mean.dtype))
        present, future = pairs.decoded
        predicted = self.step(present, latent)
        error = sample_mean(reconstruction(predicted.float(), future.float(), self.reconstruction))
        divergence = kl_to_standard_normal(posterior.mean.float(), posterior.log_variance.float())
        terms = {
            "reconstruction": LossTerm(value=error, valid=pairs.valid),
            "kl": LossTerm(value=divergence, valid=pairs.valid, weight=self.kl_weight),
        }
        return PairLosses(terms, latent)
