"""How one or two grids of tokens become the vector that an MLP reads: the open choice in RepWAM's latent actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.position import grid_sincos
from wamkit.nn.query_pooling import QueryPooling


@dataclass(frozen=True)
class MeanPooling:
    """The mean over tokens of each frame, side by side. What moved stays, where it moved is lost."""

    kind: ClassVar[str] = "mean"


@dataclass(frozen=True)
class AttentionPooling:
    """Learned queries read all tokens; those of the two frames lie on top of each other, with their place."""

    kind: ClassVar[str] = "attention"
    queries: int = 4
    width: int = 64
    heads: int = 4


@dataclass(frozen=True)
class FlattenPooling:
    """Every number of every token: the MLP's first layer is the projection. Its size grows with the grid."""

    kind: ClassVar[str] = "flatten"


@dataclass(frozen=True)
class TokenPooling:
    """The MLP runs at every token (both frames' and its place), and its outputs are averaged: pooling comes last."""

    kind: ClassVar[str] = "by_token"
    position_width: int = 32


PoolingConfig = MeanPooling | AttentionPooling | FlattenPooling | TokenPooling


class FrameReader(nn.Module):
    """Frames of tokens [B, F, N, C] to one vector (R = 1), or to one for each token (R = N): [B, R, ``outputs``]."""

    outputs: int


class _Mean(FrameReader):
    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.outputs = frames * width

    def forward(self, tokens: Float[Tensor, "B F N C"]) -> Float[Tensor, "B 1 E"]:
        return tokens.mean(dim=2).flatten(1).unsqueeze(1)


class _Flatten(FrameReader):
    def __init__(self, frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.outputs = frames * grid[0] * grid[1] * width

    def forward(self, tokens: Float[Tensor, "B F N C"]) -> Float[Tensor, "B 1 E"]:
        return tokens.flatten(1).unsqueeze(1)


def _side_by_side(tokens: Float[Tensor, "B F N C"], position: Float[Tensor, "N P"]) -> Float[Tensor, "B N E"]:
    """At each place, the frames' tokens one after the other, and where it is."""
    frames = tokens.transpose(1, 2).flatten(2)
    return torch.cat([frames, position.to(frames.dtype).expand(len(frames), -1, -1)], dim=-1)


class _Attention(FrameReader):
    def __init__(self, config: AttentionPooling, frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.outputs = config.queries * config.width
        self.register_buffer("position", grid_sincos(grid, config.width), persistent=False)
        self.enter = nn.Linear(frames * width, config.width)
        self.pool = QueryPooling(config.queries, config.width, config.heads, context_width=config.width)

    def forward(self, tokens: Float[Tensor, "B F N C"]) -> Float[Tensor, "B 1 E"]:
        context = self.enter(tokens.transpose(1, 2).flatten(2)) + self.position
        return self.pool(context).flatten(1).unsqueeze(1)


class _Token(FrameReader):
    position: Tensor

    def __init__(self, config: TokenPooling, frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.outputs = frames * width + config.position_width
        self.register_buffer("position", grid_sincos(grid, config.position_width), persistent=False)

    def forward(self, tokens: Float[Tensor, "B F N C"]) -> Float[Tensor, "B N E"]:
        return _side_by_side(tokens, self.position)


def frame_reader(config: PoolingConfig, *, frames: int, grid: tuple[int, int], width: int) -> FrameReader:
    """The reader that a config names.

    Args:
        config: Which kind.
        frames: How many frames are read together.
        grid: Rows and columns of tokens.
        width: Channels of a token.
    """
    match config:
        case MeanPooling():
            return _Mean(frames, width)
        case AttentionPooling():
            return _Attention(config, frames, grid, width)
        case FlattenPooling():
            return _Flatten(frames, grid, width)
        case TokenPooling():
            return _Token(config, frames, grid, width)
