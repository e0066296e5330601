"""Attention over a video's tokens that is full in space and causal in time, whole or piece by piece.

A frame's tokens see their own frame and the ``window - 1`` frames before it. Keys and values of frames that later ones
may still see are handed out and taken back, so that a video that comes in pieces gets the same numbers as a whole
one, in memory that does not grow with its length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.attention import attend
from wamkit.nn.feed_forward import FeedForward


class FrameMemory(NamedTuple):
    """What one layer keeps of the last frames: keys (their time already in them) and values."""

    keys: Float[Tensor, "B heads F N d"]
    values: Float[Tensor, "B heads F N d"]


class FrameTimes(NamedTuple):
    """Rotary code of the frames' numbers: two frames' product depends on how far apart they are alone."""

    cosines: Float[Tensor, "F half"]
    sines: Float[Tensor, "F half"]

    @classmethod
    def of(cls, first: int, frames: int, head_width: int, device: torch.device) -> FrameTimes:
        """Of frames ``first``, ``first + 1``, ...; angles in float64, so that a long video does not lose precision."""
        half = head_width // 2
        frequencies = 1e4 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
        angles = torch.arange(first, first + frames, dtype=torch.float64, device=device)[:, None] * frequencies
        return cls(angles.cos().float(), angles.sin().float())

    def turn(self, x: Float[Tensor, "B heads F N d"]) -> Float[Tensor, "B heads F N d"]:
        """Each pair of channels (i, i + d / 2) turned by its frame's angle."""
        first, second = x.chunk(2, dim=-1)
        cosines, sines = (part.unsqueeze(1).to(x.dtype) for part in self)
        return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)


class CausalFrameAttention(nn.Module):
    """Multi-head self-attention of ``width`` over frames of tokens; a frame sees itself and ``window - 1`` before."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} does not give {heads} heads an even number of channels each")
        if window < 1:
            raise ValueError(f"window is {window}; a frame sees at least itself, so give 1 or more")
        self.heads, self.window = heads, window
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B F N D"], times: FrameTimes, past: FrameMemory | None = None
    ) -> tuple[Float[Tensor, "B F N D"], FrameMemory]:
        """What each token reads, and what the next piece must be given as ``past``."""
        queries, keys, values = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        queries, keys = times.turn(queries), times.turn(keys)
        if past is not None:
            keys = torch.cat([past.keys.to(keys.dtype), keys], dim=2)
            values = torch.cat([past.values.to(values.dtype), values], dim=2)
        before = keys.shape[2] - queries.shape[2]
        # Frame by frame needs no mask: no product is formed to be thrown away, and every kernel of attention serves.
        read = []
        for frame in range(queries.shape[2]):
            seen = slice(max(0, before + frame + 1 - self.window), before + frame + 1)
            read.append(attend(queries[:, :, frame], keys[:, :, seen].flatten(2, 3), values[:, :, seen].flatten(2, 3)))
        kept = slice(max(0, keys.shape[2] - self.window + 1), None)
        attended = torch.stack(read, dim=2).permute(0, 2, 3, 1, 4).flatten(3)
        return self.to_out(attended), FrameMemory(keys[:, :, kept], values[:, :, kept])


class CausalFrameBlock(nn.Module):
    """x + attention(LN x), then x + feed-forward(LN x)."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = CausalFrameAttention(width, heads, window)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width)

    def forward(
        self, x: Float[Tensor, "B F N D"], times: FrameTimes, past: FrameMemory | None = None
    ) -> tuple[Float[Tensor, "B F N D"], FrameMemory]:
        """See `CausalFrameAttention`."""
        read, memory = self.attention(self.attention_norm(x), times, past)
        x = x + read
        return x + self.feed_forward(self.feed_forward_norm(x)), memory
