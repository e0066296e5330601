"""Mixture of transformers: experts with weights of their own and one attention over all their tokens.

Every expert has as many blocks as the others, and attends in the same heads and channels; its width is its own
(Fast-WAM, papers.md 4). What attends to what is said by a mask over all tokens, the first expert's first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.dynamics.wan_block import (
    Modulation,
    Queries,
    Stream,
    modulation_of,
    rest_of_block,
    self_attention_inputs,
    words_of,
)
from wamkit.nn.attention import KeysValues, attend

Expert = Sequence[nn.Module] | nn.ModuleList
"""Blocks, in order."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [B, heads, N, d] to what was read, under a mask of its own."""


def joint(
    experts: Sequence[Expert], streams: Sequence[Stream], mask: Bool[Tensor, "#B 1 N N"] | Attend
) -> list[Float[Tensor, "B n D"]]:
    """All experts' tokens through all blocks together.

    Args:
        experts: each one's blocks.
        streams: each one's tokens.
        mask: True where attention is allowed, over the tokens of all experts in order; or what attends in its stead.

    Raises:
        ValueError: the experts differ in depth.
    """
    depths = {len(expert) for expert in experts}
    if len(depths) != 1:
        raise ValueError(f"experts of {sorted(depths)} blocks cannot share their attention layer by layer")
    tokens = [stream.tokens for stream in streams]
    sizes = [x.shape[1] for x in tokens]
    for blocks in zip(*experts, strict=True):
        pairs = [_enter(block, x, stream) for block, x, stream in zip(blocks, tokens, streams, strict=True)]
        queries, keys, values = (_joined([inputs[i] for _, inputs in pairs]) for i in range(3))
        read = attend(queries, keys, values, mask) if isinstance(mask, Tensor) else mask(queries, keys, values)
        attended = read.split(sizes, dim=2)
        tokens = [
            _leave(block, x, part, modulation, stream)
            for block, x, part, (modulation, _), stream in zip(blocks, tokens, attended, pairs, streams, strict=True)
        ]
    return tokens


def prefill(
    expert: Expert, stream: Stream, mask: Bool[Tensor, "#B 1 N N"] | None = None
) -> tuple[Float[Tensor, "B N D"], list[KeysValues]]:
    """One expert alone, keeping each block's keys and values: the prefix of what another will denoise."""
    x, kept = stream.tokens, []
    for block in expert:
        modulation, inputs = _enter(block, x, stream)
        kept.append(KeysValues(inputs.keys, inputs.values))
        x = _leave(block, x, attend(*inputs, mask), modulation, stream)
    return x, kept


def after_prefix(
    expert: Expert,
    stream: Stream,
    prefix: Sequence[KeysValues],
    mask: Bool[Tensor, "#B 1 N M"],
    words: Sequence[KeysValues] | None = None,
) -> Float[Tensor, "B N D"]:
    """One expert whose tokens attend to a prefix and to themselves.

    Args:
        expert: its blocks.
        stream: its tokens.
        prefix: from `prefill` or `extend`.
        mask: True where attention is allowed, over the prefix and then the own tokens.
        words: each block's keys and values of the words, where they were projected ahead of a denoise loop.
    """
    return extend(expert, stream, prefix, mask, words)[0]


def extend(
    expert: Expert,
    stream: Stream,
    prefix: Sequence[KeysValues],
    mask: Bool[Tensor, "#B 1 N M"],
    words: Sequence[KeysValues] | None = None,
) -> tuple[Float[Tensor, "B N D"], list[KeysValues]]:
    """`after_prefix`, keeping the own tokens' keys and values of each block: what the prefix goes on with."""
    x, kept = stream.tokens, []
    for index, (block, before) in enumerate(zip(expert, prefix, strict=True)):
        modulation, own = _enter(block, x, stream)
        kept.append(KeysValues(own.keys, own.values))
        # A prefix that was kept in the weights' precision meets tokens under autocast.
        keys = _joined([before.keys.to(own.keys.dtype), own.keys])
        values = _joined([before.values.to(own.values.dtype), own.values])
        attended = attend(own.queries, keys, values, mask)
        x = _leave(block, x, attended, modulation, stream, None if words is None else words[index])
    return x, kept


def _enter(block: nn.Module, x: Tensor, stream: Stream) -> tuple[Modulation, Queries]:
    modulation = modulation_of(block, stream.time)
    return modulation, self_attention_inputs(block, x, modulation, stream.rotary)


def _leave(
    block: nn.Module,
    x: Tensor,
    attended: Tensor,
    modulation: Modulation,
    stream: Stream,
    words: KeysValues | None = None,
) -> Tensor:
    read = words_of(block, stream.words) if words is None else words
    return rest_of_block(block, x, attended, modulation, read, stream.words_mask)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2)
