"""Light-WAM's StateFusionActionExpert: states of several backbone layers to an action chunk, in one pass.

Each layer's tokens are pooled to one vector and widened; the layers' vectors are fused, and every step of the chunk
adds its own position to the fused vector before a small network reads off its action (papers.md 2.3). No diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.errors import MisfitError
from wamkit.nn.attention import Attention
from wamkit.nn.position import sincos

Source = Literal["backbone", "adapted", "delta"]
"""What is read of a layer: before its adapter, after it, or what the adapter added."""


@dataclass(frozen=True)
class StateFusionConfig:
    """Dimensions and composition; the defaults are the released ones."""

    action_dim: int = 7
    pooling: Literal["learned_query", "attention", "concatenation", "mean"] = "learned_query"
    """``attention``: one learned score for each token. ``concatenation``: every token, narrowed, side by side. Both
    are the plain baselines that the paper's reviewers asked for; ``mean`` learns nothing."""
    queries: int = 16
    heads: int = 8
    merge: Literal["softmax", "mean"] = "softmax"
    """How the queries' answers become one: by learned weights (the code) or by their mean (the paper)."""
    sources: tuple[Source, ...] = ("adapted",)
    layer_width: int = 4608
    trunk_width: int = 6144
    trunk_blocks: int = 1
    step_width: int = 256


class LayerStates(NamedTuple):
    """One tapped layer's tokens before and after its adapter."""

    backbone: Float[Tensor, "B N D"]
    adapted: Float[Tensor, "B N D"]

    def source(self, name: Source) -> Float[Tensor, "B N D"]:
        """The tokens of that name."""
        return self.adapted - self.backbone if name == "delta" else getattr(self, name)


class LearnedQueryPool(nn.Module):
    """Learned queries attend to the tokens; their answers are merged to one vector."""

    def __init__(self, width: int, config: StateFusionConfig) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.attention = Attention(width, config.heads)
        self.merge_logits = nn.Parameter(torch.zeros(config.queries)) if config.merge == "softmax" else None
        self.output_norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One vector for each sample."""
        context = self.attention.project(self.token_norm(tokens))
        answers = self.attention(self.queries.expand(len(tokens), -1, -1).to(tokens.dtype), context)
        if self.merge_logits is None:
            return self.output_norm(answers.mean(dim=1))
        return self.output_norm((answers * self.merge_logits.softmax(dim=0)[:, None]).sum(dim=1))


class AttentionPool(nn.Module):
    """A learned score for each token, and the tokens' mean under the softmax of the scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One vector for each sample."""
        normed = self.token_norm(tokens)
        return self.output_norm((self.score(normed).softmax(dim=1) * normed).sum(dim=1))


class ConcatenationPool(nn.Module):
    """Every token narrowed to a few channels, all side by side, and one linear layer: no query, no weighting."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        narrow = max(1, width // tokens)
        self.token_norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, narrow)
        self.join = nn.Linear(tokens * narrow, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One vector for each sample."""
        return self.output_norm(self.join(self.narrow(self.token_norm(tokens)).flatten(1)))


class MeanPool(nn.Module):
    """The tokens' mean."""

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One vector for each sample."""
        return tokens.mean(dim=1)


def _pool(width: int, tokens: int, config: StateFusionConfig) -> nn.Module:
    if config.pooling == "learned_query":
        return LearnedQueryPool(width, config)
    if config.pooling == "attention":
        return AttentionPool(width)
    return ConcatenationPool(width, tokens) if config.pooling == "concatenation" else MeanPool()


class Compressor(nn.Module):
    """LayerNorm, Linear, GELU, Linear: one layer's pooled vector to its share of the fused one."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.enter = nn.Linear(width_in, width_out)
        self.activation = nn.GELU(approximate="tanh")
        self.leave = nn.Linear(width_out, width_out)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Widen."""
        return self.leave(self.activation(self.enter(self.norm(x))))


class ResidualBlock(Compressor):
    """The same, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Refine."""
        return x + super().forward(x)


class StateFusionActionExpert(nn.Module):
    """Several layers' states to actions.

    Args:
        config: dimensions.
        width: D, of the backbone.
        layers: how many layers are tapped.
        tokens: N, of the tapped states (only concatenation depends on it).
    """

    def __init__(self, config: StateFusionConfig, *, width: int, layers: int, tokens: int) -> None:
        super().__init__()
        if not config.sources or len(set(config.sources)) != len(config.sources):
            raise MisfitError(f"sources are {config.sources}: name at least one of backbone, adapted, delta, once each")
        self.config = config
        self.pools = nn.ModuleList(
            nn.ModuleDict({source: _pool(width, tokens, config) for source in config.sources}) for _ in range(layers)
        )
        self.compressors = nn.ModuleList(
            Compressor(width * len(config.sources), config.layer_width) for _ in range(layers)
        )
        fused, trunk = layers * config.layer_width, config.trunk_width
        self.fused_norm = nn.LayerNorm(fused)
        self.fuse = nn.Linear(fused, trunk)
        self.trunk = nn.ModuleList(ResidualBlock(trunk) for _ in range(config.trunk_blocks))
        self.step_code = nn.Sequential(
            nn.LayerNorm(config.step_width),
            nn.Linear(config.step_width, trunk),
            nn.GELU(approximate="tanh"),
            nn.Linear(trunk, trunk),
        )
        self.output_norm = nn.LayerNorm(trunk)
        self.output = nn.Sequential(
            nn.Linear(trunk, trunk), nn.GELU(approximate="tanh"), nn.Linear(trunk, config.action_dim)
        )

    def forward(self, states: Sequence[LayerStates], steps: int) -> Float[Tensor, "B K A"]:
        """Actions of ``steps`` steps, from the tapped states in the backbone's order."""
        vectors = []
        for state, pools, compressor in zip(states, self.pools, self.compressors, strict=True):
            by_source = cast("nn.ModuleDict", pools)
            pooled = [by_source[source](state.source(source)) for source in self.config.sources]
            vectors.append(compressor(torch.cat(pooled, dim=-1)))
        fused = self.fuse(self.fused_norm(torch.cat(vectors, dim=-1)))
        for block in self.trunk:
            fused = block(fused)
        index = torch.arange(steps, dtype=torch.float32, device=fused.device)
        # The released code has cosines before sines.
        sines, cosines = sincos(index, self.config.step_width).chunk(2, dim=-1)
        code = self.step_code(torch.cat([cosines, sines], dim=-1).to(self.fuse.weight.dtype))
        return self.output(self.output_norm(fused.unsqueeze(1) + code))
