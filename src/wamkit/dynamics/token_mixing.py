"""The token-mixing matrix K of a linear transition, made small in several ways.

RepWAM (arXiv 2606.13674) has a network emit K, one row for each of L tokens: 65,536 numbers at L = 256, and it does
not say whether its rows are normalised. Here each token is given a few numbers of which its row is made. Every kind
starts near the identity, so that an untrained transition predicts about the present.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Rows = Literal["free", "softmax"]
"""``free``: K is the identity plus what is emitted. ``softmax``: every row is positive and sums to one, so that a
token of the future is a weighted mean of tokens of the present."""

_STAY = 3.0
"""Logit by which a token prefers itself at the start, under ``softmax``."""


@dataclass(frozen=True)
class FullMixing:
    """All of K: L numbers a token."""

    kind: ClassVar[str] = "full"
    rows: Rows = "free"


@dataclass(frozen=True)
class LowRankMixing:
    """The identity plus a product of an L x rank and a rank x L matrix."""

    kind: ClassVar[str] = "low_rank"
    rank: int = 8
    rows: Rows = "free"


@dataclass(frozen=True)
class LocalMixing:
    """Only tokens at most ``reach`` cells away on the grid are mixed: things move to where they nearly are."""

    kind: ClassVar[str] = "local"
    reach: int = 1
    rows: Rows = "free"


@dataclass(frozen=True)
class DiagonalMixing:
    """Each token is scaled by a number of its own; none is mixed with another."""

    kind: ClassVar[str] = "diagonal"


@dataclass(frozen=True)
class ScaledMixing:
    """One number scales all tokens."""

    kind: ClassVar[str] = "scaled"


@dataclass(frozen=True)
class IdentityMixing:
    """K = I: the offset alone moves the latents. The control for all other kinds."""

    kind: ClassVar[str] = "identity"


MixingConfig = FullMixing | LowRankMixing | LocalMixing | DiagonalMixing | ScaledMixing | IdentityMixing


class TokenMixing(nn.Module):
    """From ``numbers`` emitted for each token to K, applied without building it where that is cheaper."""

    numbers: int
    """How many numbers each token is given."""

    @abstractmethod
    def forward(self, emitted: Float[Tensor, "B N M"], tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """K z."""

    def matrix(self, emitted: Float[Tensor, "B N M"]) -> Float[Tensor, "B N N"]:
        """K itself, to look at."""
        count = emitted.shape[1]
        one_hot = torch.eye(count, device=emitted.device, dtype=emitted.dtype)
        return self(emitted, one_hot.expand(len(emitted), -1, -1))


class _Full(TokenMixing):
    stay: Tensor

    def __init__(self, config: FullMixing, tokens: int) -> None:
        super().__init__()
        self.numbers, self.softmax = tokens, config.rows == "softmax"
        # Where the other tokens are many, each is less likely, so that a row starts with most of its weight at home.
        self.register_buffer("stay", (_STAY + math.log(tokens)) * torch.eye(tokens), persistent=False)

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        if self.softmax:
            return (emitted + self.stay).softmax(dim=-1) @ tokens
        return tokens + emitted @ tokens


class _LowRank(TokenMixing):
    def __init__(self, config: LowRankMixing, tokens: int) -> None:
        super().__init__()
        self.softmax, self.root = config.rows == "softmax", math.sqrt(tokens)
        self.numbers = 2 * config.rank + self.softmax

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        if not self.softmax:
            left, right = emitted.chunk(2, dim=-1)
            return tokens + left @ (right.transpose(1, 2) @ tokens) / self.root
        # Both factors have rows that sum to one, hence their product has; a gate keeps part of each token at home.
        left, right = emitted[..., 1:].chunk(2, dim=-1)
        gathered = left.softmax(dim=-1) @ (right.transpose(1, 2).softmax(dim=-1) @ tokens)
        return torch.lerp(tokens, gathered, (emitted[..., :1] - _STAY).sigmoid())


class _Local(TokenMixing):
    start: Tensor

    def __init__(self, config: LocalMixing, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.reach, self.softmax = grid, config.reach, config.rows == "softmax"
        side = 2 * config.reach + 1
        self.numbers = side**2
        inside = self._neighbours(torch.ones(1, grid[0] * grid[1], 1))[0, :, :, 0] > 0
        start = torch.where(inside, 0.0, -torch.inf)
        start[:, self.numbers // 2] = _STAY + math.log(self.numbers)
        self.register_buffer("start", start, persistent=False)

    def _neighbours(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N M C"]:
        """Of each token, the tokens around it; zeros beyond the grid's edge."""
        image = tokens.transpose(1, 2).unflatten(-1, self.grid)
        around = F.unfold(image, 2 * self.reach + 1, padding=self.reach)
        return around.unflatten(1, (tokens.shape[-1], -1)).permute(0, 3, 2, 1)

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        around = self._neighbours(tokens)
        if self.softmax:
            return ((emitted + self.start).softmax(dim=-1).unsqueeze(2) @ around).squeeze(2)
        return tokens + (emitted.unsqueeze(2) @ around).squeeze(2)


class _Diagonal(TokenMixing):
    numbers = 1

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        return tokens * (1.0 + emitted)


class _Scaled(TokenMixing):
    numbers = 1

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        return tokens * (1.0 + emitted.mean(dim=1, keepdim=True))


class _Identity(TokenMixing):
    numbers = 0

    def forward(self, emitted: Tensor, tokens: Tensor) -> Tensor:
        return tokens


def token_mixing(config: MixingConfig, grid: tuple[int, int]) -> TokenMixing:
    """The kind of K that a config names, for tokens on a grid."""
    match config:
        case FullMixing():
            return _Full(config, grid[0] * grid[1])
        case LowRankMixing():
            return _LowRank(config, grid[0] * grid[1])
        case LocalMixing():
            return _Local(config, grid)
        case DiagonalMixing():
            return _Diagonal()
        case ScaledMixing():
            return _Scaled()
        case IdentityMixing():
            return _Identity()
