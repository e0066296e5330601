"""RepWAM's latent-action tokenizer: four numbers between two latent frames, and the linear step that they stand for.

RepWAM (arXiv 2606.13674), papers.md 3.3. The video tokenizer is frozen. The inverse model q reads two latent frames,
l_t = q(z_t, z_t+1) in R^4; the forward model f emits a token-mixing matrix and an offset, K_t, d_t = f(z_t, l_t), and
the step is linear in the latent: z'_t+1 = K_t z_t + d_t. Both are MLPs of four layers, 256 wide. The losses are the
step's squared error and "a consistency loss on the reversed pair".

What the paper leaves open is chosen in the config by composition and compared by ``benchmarks/latent_actions.py``:
how two grids of tokens become one vector (``pooling``), how f speaks for every token (``emission``), how K is made
small and whether its rows are normalised (``mixing``), and what is asked of the reversed pair (``consistency``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.dynamics.base import FramePairs, LatentActionError, LatentDynamics, PairLosses, Posterior
from wamkit.dynamics.frame_reading import AttentionPooling, FlattenPooling, MeanPooling, PoolingConfig, frame_reader
from wamkit.dynamics.token_mixing import LowRankMixing, MixingConfig, token_mixing
from wamkit.losses.latent_action import antisymmetry
from wamkit.losses.reconstruction import ReconstructionKind, reconstruction
from wamkit.losses.reduction import sample_mean
from wamkit.nn.position import grid_sincos
from wamkit.nn.running_scale import RunningScale
from wamkit.types import LossTerm

Consistency = Literal["reversed", "round_trip", "antisymmetric", "none"]
"""What is asked of the reversed pair. ``reversed``: q and f explain it as they explain the pair, z_t from z_t+1 and
q(z_t+1, z_t). ``round_trip``: the same, from what the forward step predicted instead of from z_t+1, so that the two
steps undo each other. ``antisymmetric``: its latent action is the negative of the pair's. ``none``: nothing."""


@dataclass(frozen=True)
class WholeGrid:
    """f is one MLP: it reads the pooled frame and the latent action, and emits the numbers of all tokens at once."""

    kind: ClassVar[str] = "whole_grid"


@dataclass(frozen=True)
class ByToken:
    """f is one MLP applied at every token: it reads that token, its place and the latent action.

    Its size does not depend on the number of tokens.
    """

    kind: ClassVar[str] = "by_token"
    position_width: int = 32


EmissionConfig = WholeGrid | ByToken


@dataclass(frozen=True)
class LinearTransitionConfig:
    """Dimensions, the paper's by default, and the choices that it leaves open."""

    kind: ClassVar[str] = "linear_transition"
    latent_width: int = 4
    hidden: int = 256
    layers: int = 4
    pooling: PoolingConfig = AttentionPooling()
    """In q, and in f where that reads the whole grid. The paper does not say."""
    emission: EmissionConfig = ByToken()
    """The paper's f "outputs" K and d; it does not say for all tokens at once or for each alone. By token, the latent
    action said most of the robot's action (docs/benchmarks.md)."""
    mixing: MixingConfig = LowRankMixing()
    """The paper's K is L x L; it says neither how that is made small nor whether K is normalised."""
    consistency: Consistency = "reversed"
    """The paper: "consistency loss on the reversed pair"."""
    consistency_weight: float = 1.0
    """Not in the paper."""


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """``layers`` linear layers with GELU between them; the paper names no activation."""
    if layers < 2:
        raise LatentActionError(f"the MLPs of a linear transition have at least two layers, not {layers}")
    modules: list[nn.Module] = [nn.Linear(inputs, hidden), nn.GELU()]
    for _ in range(layers - 2):
        modules += [nn.Linear(hidden, hidden), nn.GELU()]
    return nn.Sequential(*modules, nn.Linear(hidden, outputs))


class InverseModel(nn.Module):
    """q: two latent frames to a latent action, in units of its own."""

    def __init__(self, config: LinearTransitionConfig, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.read = frame_reader(config.pooling, frames=2, grid=grid, width=width)
        self.body = mlp(self.read.outputs, config.hidden, config.latent_width, config.layers)

    def forward(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 Z"]:
        """One token. Where the reading is by token, so is the MLP, and the mean of its outputs is taken."""
        # The present and the change: the same functions as of the two frames, but what moved stands out from the start.
        read = self.read(torch.stack([present, future - present], dim=1))
        return self.body(read).mean(dim=1, keepdim=True)


class _WholeGridEmission(nn.Module):
    def __init__(self, config: LinearTransitionConfig, grid: tuple[int, int], width: int, numbers: int) -> None:
        super().__init__()
        # A mean over tokens is all that a reading by token leaves of a whole grid.
        pooling = config.pooling if isinstance(config.pooling, (AttentionPooling, FlattenPooling)) else MeanPooling()
        self.tokens = grid[0] * grid[1]
        self.read = frame_reader(pooling, frames=1, grid=grid, width=width)
        inputs = self.read.outputs + config.latent_width
        self.body = mlp(inputs, config.hidden, self.tokens * numbers, config.layers)

    def forward(self, present: Tensor, latent: Tensor) -> Tensor:
        read = self.read(present.unsqueeze(1)).squeeze(1)
        return self.body(torch.cat([read, latent], dim=-1)).unflatten(-1, (self.tokens, -1))


class _TokenEmission(nn.Module):
    position: Tensor

    def __init__(self, config: LinearTransitionConfig, grid: tuple[int, int], width: int, numbers: int) -> None:
        super().__init__()
        assert isinstance(config.emission, ByToken)
        position = grid_sincos(grid, config.emission.position_width)
        self.register_buffer("position", position, persistent=False)
        inputs = width + config.emission.position_width + config.latent_width
        self.body = mlp(inputs, config.hidden, numbers, config.layers)

    def forward(self, present: Tensor, latent: Tensor) -> Tensor:
        count, tokens = present.shape[:2]
        place = self.position.to(present.dtype).expand(count, -1, -1)
        told = latent.to(present.dtype).unsqueeze(1).expand(-1, tokens, -1)
        return self.body(torch.cat([present, place, told], dim=-1))


class LinearTransition(nn.Module):
    """f and the linear step: z' = K z + d."""

    def __init__(self, config: LinearTransitionConfig, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.mix = token_mixing(config.mixing, grid)
        emission = _TokenEmission if isinstance(config.emission, ByToken) else _WholeGridEmission
        self.emit = emission(config, grid, width, self.mix.numbers + width)
        self._start_near_the_present()

    def _start_near_the_present(self) -> None:
        """Small last weights: K starts near the identity and d near zero, but neither exactly, or K could not learn."""
        last = self.emit.body[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()

    def emitted(
        self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B 1 Z"]
    ) -> tuple[Float[Tensor, "B N M"], Float[Tensor, "B N D"]]:
        """What K is made of, and d."""
        numbers = self.emit(present, latent_action.squeeze(1))
        mixing, offset = numbers.split([self.mix.numbers, present.shape[-1]], dim=-1)
        return mixing, offset

    def matrix(
        self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B 1 Z"]
    ) -> tuple[Float[Tensor, "B N N"], Float[Tensor, "B N D"]]:
        """K_t and d_t themselves."""
        mixing, offset = self.emitted(present, latent_action)
        return self.mix.matrix(mixing), offset

    def forward(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B 1 Z"]) -> Float[Tensor, "B N D"]:
        """The predicted next latent frame; latent actions as `LatentActionTokenizer.infer` gives them."""
        mixing, offset = self.emitted(present, latent_action)
        return self.mix(mixing, present) + offset


class LatentActionTokenizer(LatentDynamics):
    """q and f together: RepWAM's latent actions.

    Latent actions are in standard units: zero mean and unit variance over the data, by statistics that follow the
    training, carry no gradient and are saved with the weights. q may choose any scale; f, and whatever is trained on
    latent actions later, then meets the same. Without it q's output differs so little between pairs at first that f
    learns to do without (docs/log.md).
    """

    reconstruction: ReconstructionKind

    def __init__(
        self,
        config: LinearTransitionConfig,
        grid: tuple[int, int],
        feature_width: int,
        *,
        reconstruction: ReconstructionKind = "squared",
    ) -> None:
        super().__init__()
        self.config, self.reconstruction = config, reconstruction
        self.encoder = InverseModel(config, grid, feature_width)
        self.scale = RunningScale(config.latent_width)
        self.decoder = LinearTransition(config, grid, feature_width)

    @property
    def queries(self) -> int:
        """One."""
        return 1

    @property
    def latent_width(self) -> int:
        """Z, 4 in the paper."""
        return self.config.latent_width

    def infer(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Posterior:
        """The latent action between two latent frames, without a spread: q is deterministic."""
        return Posterior.point(self.scale.standardise(self.encoder(present, future)))

    def losses(self, pairs: FramePairs, generator: torch.Generator | None = None) -> PairLosses:
        """``forward``, and ``reversed``, ``round_trip`` or ``antisymmetric`` where the config asks for it.

        In training mode the statistics of the latent actions follow the valid pairs.
        """
        config, scale = self.config, self.scale
        raw = self.encoder(pairs.present, pairs.future)
        if self.training:
            scale.update(raw.detach(), pairs.valid)
        latent = scale.standardise(raw)
        present, future = pairs.decoded
        predicted = self.decoder(present, latent)
        terms = {"forward": LossTerm(value=self._error(predicted, future), valid=pairs.valid)}
        if config.consistency != "none":
            back = scale.standardise(self.encoder(pairs.future, pairs.present))
            if config.consistency == "antisymmetric":
                value = antisymmetry(latent, back)
            else:
                start = future if config.consistency == "reversed" else predicted
                value = self._error(self.decoder(start, back), present)
            terms[config.consistency] = LossTerm(value=value, valid=pairs.valid, weight=config.consistency_weight)
        return PairLosses(terms, latent)

    def _error(self, predicted: Tensor, actual: Tensor) -> Float[Tensor, "B"]:
        return sample_mean(reconstruction(predicted.float(), actual.float(), self.reconstruction))
