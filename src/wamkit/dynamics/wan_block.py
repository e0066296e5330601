"""One block of Wan's transformer, cut where several token streams meet: before and after self-attention.

The modules are diffusers' own, so published weights load by name; the forward is ours, because a world action model
needs what theirs does not offer: an attention mask, a noise level for each frame, states between blocks, and keys and
values that another expert attends to. Tests hold it against diffusers' forward.

A block of width D attends in ``heads`` x ``d`` channels, which may be more than D (Fast-WAM's action expert).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention import KeysValues, attend

WanBlock = Any
"""diffusers' block or `wamkit.actions.action_dit.ActionBlock`: modules with the same parts, which no class says."""


class Rotary(NamedTuple):
    """Cosines and sines of the rotary position code, one for each pair of channels; of all samples or of each."""

    cosines: Float[Tensor, "N half"] | Float[Tensor, "B 1 N half"]
    sines: Float[Tensor, "N half"] | Float[Tensor, "B 1 N half"]


class Stream(NamedTuple):
    """One expert's tokens on their way through its blocks, and what each block reads beside them."""

    tokens: Float[Tensor, "B N D"]
    time: Float[Tensor, "B T 6 D"]
    """Scales, shifts and gates of each of T equal runs of tokens (the frames), before a block adds its own."""
    rotary: Rotary
    words: Float[Tensor, "B L D"]
    words_mask: Bool[Tensor, "B 1 1 L"] | None


class TimeCode(NamedTuple):
    """What a noise level does to the tokens at it."""

    code: Float[Tensor, "*batch D"]
    """For the last layer."""
    blocks: Float[Tensor, "*batch 6 D"]
    """Scales, shifts and gates, before each block adds its own."""


class Queries(NamedTuple):
    """Queries, keys and values of self-attention, positions applied."""

    queries: Float[Tensor, "B heads N d"]
    keys: Float[Tensor, "B heads N d"]
    values: Float[Tensor, "B heads N d"]


class Modulation(NamedTuple):
    """What the noise level does to one block, for each run of tokens."""

    shift_attention: Float[Tensor, "B T 1 D"]
    scale_attention: Float[Tensor, "B T 1 D"]
    gate_attention: Float[Tensor, "B T 1 D"]
    shift_mlp: Float[Tensor, "B T 1 D"]
    scale_mlp: Float[Tensor, "B T 1 D"]
    gate_mlp: Float[Tensor, "B T 1 D"]


def modulation_of(block: WanBlock, time: Float[Tensor, "B T 6 D"]) -> Modulation:
    """The block's own table added to the time's, in float32."""
    table = block.scale_shift_table.float().unsqueeze(0) + time.float()
    return Modulation(*(part.unsqueeze(2) for part in table.unbind(2)))


def _in_runs(x: Float[Tensor, "B N D"], values: Float[Tensor, "B T 1 D"]) -> Float[Tensor, "B T n D"]:
    return x.unflatten(1, (values.shape[1], -1))


def scale_and_shift(
    x: Float[Tensor, "B N D"], scale: Float[Tensor, "B T 1 D"], shift: Float[Tensor, "B T 1 D"]
) -> Float[Tensor, "B N D"]:
    """Each run of tokens under its own scale and shift."""
    return (_in_runs(x, scale) * (1 + scale) + shift).flatten(1, 2)


def gated(
    x: Float[Tensor, "B N D"], change: Float[Tensor, "B N D"], gate: Float[Tensor, "B T 1 D"]
) -> Float[Tensor, "B N D"]:
    """X + gate * change, in x's precision."""
    return (x.float() + (_in_runs(change.float(), gate) * gate).flatten(1, 2)).to(x.dtype)


def self_attention_inputs(
    block: WanBlock, x: Float[Tensor, "B N D"], modulation: Modulation, rotary: Rotary
) -> Queries:
    """What a block's tokens bring to self-attention."""
    normed = scale_and_shift(block.norm1(x.float()), modulation.scale_attention, modulation.shift_attention).to(x.dtype)
    attention = block.attn1
    values = attention.to_v(normed)
    queries = _rotated(_normed(attention.norm_q, attention.to_q(normed)), attention.heads, rotary, values.dtype)
    keys = _rotated(_normed(attention.norm_k, attention.to_k(normed)), attention.heads, rotary, values.dtype)
    return Queries(queries, keys, _heads(values, attention.heads))


def rest_of_block(
    block: WanBlock,
    x: Float[Tensor, "B N D"],
    attended: Float[Tensor, "B heads N d"],
    modulation: Modulation,
    words: KeysValues,
    words_mask: Bool[Tensor, "B 1 1 L"] | None,
) -> Float[Tensor, "B N D"]:
    """Output of self-attention, cross-attention to the words, feed-forward."""
    x = gated(x, block.attn1.to_out[0](attended.transpose(1, 2).flatten(2)), modulation.gate_attention)
    cross = block.attn2
    normed = block.norm2(x.float()).to(x.dtype)
    queries = _heads(_normed(cross.norm_q, cross.to_q(normed)).to(words.values.dtype), cross.heads)
    read = attend(queries, words.keys, words.values, words_mask)
    x = (x + cross.to_out[0](read.transpose(1, 2).flatten(2))).to(x.dtype)
    normed = scale_and_shift(block.norm3(x.float()), modulation.scale_mlp, modulation.shift_mlp).to(x.dtype)
    return gated(x, block.ffn(normed), modulation.gate_mlp)


def words_of(block: WanBlock, words: Float[Tensor, "B L D"]) -> KeysValues:
    """Keys and values of a block's cross-attention; a denoiser computes them once for all its steps."""
    cross = block.attn2
    values = cross.to_v(words)
    keys = _normed(cross.norm_k, cross.to_k(words)).to(values.dtype)
    return KeysValues(_heads(keys, cross.heads), _heads(values, cross.heads))


def through_block(
    block: WanBlock, x: Float[Tensor, "B N D"], stream: Stream, mask: Bool[Tensor, "#B 1 N N"] | None = None
) -> Float[Tensor, "B N D"]:
    """One stream alone through one block; ``mask`` is True where attention is allowed."""
    modulation = modulation_of(block, stream.time)
    attended = attend(*self_attention_inputs(block, x, modulation, stream.rotary), mask)
    return rest_of_block(block, x, attended, modulation, words_of(block, stream.words), stream.words_mask)


def called_modules(block: WanBlock) -> list[nn.Module]:
    """What of a block is called as a module by the functions above, so that FSDP2 can gather it; the block never is."""
    attentions = (block.attn1, block.attn2)
    projections = [(each.to_q, each.to_k, each.to_v, each.to_out[0]) for each in attentions]
    return [*projections[0], *projections[1], block.ffn]


def _heads(x: Float[Tensor, "B N E"], heads: int) -> Float[Tensor, "B heads N d"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _normed(norm: Any, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
    """RMSNorm across all heads, in float32 whatever the weights' precision."""
    return F.rms_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.eps)


def _rotated(x: Float[Tensor, "B N E"], heads: int, rotary: Rotary, dtype: torch.dtype) -> Tensor:
    """Neighbouring channels turned together by their position's angle: [B, heads, N, d]."""
    even, odd = _heads(x, heads).unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = rotary.cosines.to(x.dtype), rotary.sines.to(x.dtype)
    turned = torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], dim=-1)
    return turned.flatten(-2).to(dtype)
