"""What a causal model keeps of an episode: keys and values of its last latent frames and actions, one row an episode.

A row belongs to whoever runs the episode, never to the module, and is never written to: `with_frames` makes a new one.
So rows may be held, copied, tried again after a failure, and put together into any batch, whatever the batches were
before. A batch is made anew for each chunk by padding rows of different length (`Batch.of`); nothing of one row can
reach another. What runs at fixed shapes has the same as plain tensors with room to spare (`packed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wamkit.nn.attention import KeysValues


class Stacked(NamedTuple):
    """Keys and values of some tokens in all layers."""

    keys: Float[Tensor, "B layers heads n d"]
    values: Float[Tensor, "B layers heads n d"]

    @classmethod
    def of(cls, kept: Sequence[KeysValues]) -> Stacked:
        """Layer by layer, put together."""
        return cls(torch.stack([layer.keys for layer in kept], 1), torch.stack([layer.values for layer in kept], 1))


@dataclass(frozen=True)
class Row:
    """One episode's past under one instruction."""

    keys: Float[Tensor, "layers heads M d"]
    values: Float[Tensor, "layers heads M d"]
    frame: Int[Tensor, "M"]
    """The latent frame that each token belongs to."""
    frames: int = 0
    """Latent frames seen since the episode's start: the next one's number."""

    @classmethod
    def empty(cls, layers: int, heads: int, width: int, *, device: torch.device, dtype: torch.dtype) -> Row:
        """Of an episode of which nothing was seen."""
        nothing = torch.zeros(layers, heads, 0, width, device=device, dtype=dtype)
        return cls(nothing, nothing, torch.zeros(0, dtype=torch.long, device=device))

    def with_frames(
        self,
        keys: Float[Tensor, "layers heads m d"],
        values: Float[Tensor, "layers heads m d"],
        frame: Int[Tensor, "m"],
        *,
        added: int,
        window: int,
    ) -> Row:
        """The row after ``added`` more frames, without those that lie more than ``window`` frames behind the next."""
        following = self.frames + added
        kept = self.frame >= following - window
        new = frame >= following - window
        return Row(
            torch.cat([self.keys[:, :, kept], keys[:, :, new]], dim=2),
            torch.cat([self.values[:, :, kept], values[:, :, new]], dim=2),
            torch.cat([self.frame[kept], frame[new]]),
            following,
        )

    @property
    def size(self) -> int:
        """Numbers held: bounded by the window."""
        return self.keys.numel() + self.values.numel()


@dataclass(frozen=True)
class Batch:
    """Rows side by side, padded to the longest."""

    prefix: tuple[KeysValues, ...]
    """By layer, [B, heads, M, d]."""
    readable: Bool[Tensor, "B M"]
    frames: Int[Tensor, "B"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """Pad and stack."""
        keys, values = (
            pad_sequence([part.permute(2, 0, 1, 3) for part in parts], batch_first=True).permute(2, 0, 3, 1, 4)
            for parts in ([row.keys for row in rows], [row.values for row in rows])
        )
        marked = [torch.ones_like(row.frame, dtype=torch.bool) for row in rows]
        prefix = tuple(KeysValues(k, v) for k, v in zip(keys, values, strict=True))
        frames = torch.tensor([row.frames for row in rows], device=marked[0].device)
        return cls(prefix, pad_sequence(marked, batch_first=True), frames)

    def followed_by(self, own: Sequence[KeysValues], readable: Bool[Tensor, "B m"]) -> Batch:
        """The same with more tokens behind it; the frames' numbers stay, since the chunk is still the same."""
        prefix = tuple(
            KeysValues(torch.cat([a.keys, b.keys], dim=2), torch.cat([a.values, b.values], dim=2))
            for a, b in zip(self.prefix, own, strict=True)
        )
        return Batch(prefix, torch.cat([self.readable, readable], dim=1), self.frames)

    def mask(self, own: Bool[Tensor, "B m"]) -> Bool[Tensor, "B 1 m N"]:
        """Over the prefix and then the own tokens, all of which see all that is readable."""
        seen = torch.cat([self.readable, own], dim=1)
        return seen[:, None, None, :].expand(-1, 1, own.shape[1], -1)


def by_copy(pasts: Sequence[tuple[Row, ...]]) -> list[Row]:
    """All episodes' rows under their instruction, then those without one."""
    return [past[copy] for copy in range(len(pasts[0])) for past in pasts]


def by_episode(rows: Sequence[Row], copies: int) -> list[tuple[Row, ...]]:
    """The inverse of `by_copy`."""
    count = len(rows) // copies
    return [tuple(rows[copy * count + index] for copy in range(copies)) for index in range(count)]


def packed(pasts: Sequence[Sequence[Row]], room: int, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Some episodes' rows as tensors whose shapes say nothing of how long the episodes are.

    Args:
        pasts: Of each episode its rows, as many of each and of one length.
        room: Tokens to pad to.
        dtype: Of keys and values; None: the rows'.

    Returns:
        ``keys`` and ``values`` [B, copies, layers, heads, room, d], ``readable`` [B, room], ``frames`` [B].

    Raises:
        ValueError: an episode holds more than that.
    """
    like = pasts[0][0].keys
    layers, heads, _, width = like.shape
    keys = like.new_zeros(len(pasts), len(pasts[0]), layers, heads, room, width, dtype=dtype)
    values, readable = torch.zeros_like(keys), like.new_zeros(len(pasts), room, dtype=torch.bool)
    for index, past in enumerate(pasts):
        tokens = len(past[0].frame)
        if tokens > room:
            raise ValueError(f"an episode of {tokens} tokens does not fit into {room}")
        readable[index, :tokens] = True
        for copy, row in enumerate(past):
            keys[index, copy, :, :, :tokens] = row.keys
            values[index, copy, :, :, :tokens] = row.values
    frames = torch.tensor([past[0].frames for past in pasts], device=like.device)
    return {"keys": keys, "values": values, "readable": readable, "frames": frames}


def unpacked(
    keys: Float[Tensor, "B copies layers heads M d"],
    values: Float[Tensor, "B copies layers heads M d"],
    readable: Bool[Tensor, "B M"],
    frames: Int[Tensor, "B"],
) -> Batch:
    """What `packed` made as a batch, in the order of `by_copy`."""
    by_layer = [part.permute(2, 1, 0, 3, 4, 5).flatten(1, 2).unbind(0) for part in (keys, values)]
    prefix = tuple(KeysValues(k, v) for k, v in zip(*by_layer, strict=True))
    return Batch(prefix, readable.repeat(keys.shape[1], 1), frames.repeat(keys.shape[1]))
