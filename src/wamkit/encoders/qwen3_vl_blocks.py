"""The two places where transformers' Qwen3-VL meets a batch of equal images and one fixed layout.

Parameter names stay transformers' own, so published weights load by name.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
    repeat_kv,
)

from wamkit.nn.attention import attend

ATTENTION_NAME = "wamkit"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    groups = cast("int", module.num_key_value_groups)
    # The rotary embedding leaves queries and keys in float32 under autocast.
    query, key = query.to(value.dtype), key.to(value.dtype)
    attended = attend(query, repeat_kv(key, groups), repeat_kv(value, groups), attention_mask)
    return attended.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, _attention)


class BatchedVisionAttention(Qwen3VLVisionAttention):
    """Vision attention over images of one size, as a batch instead of one packed sequence cut in a loop."""

    def __init__(self, config: Qwen3VLVisionConfig) -> None:
        super().__init__(config)

    def forward(
        self,
        hidden_states: Float[Tensor, "n T D"],
        cu_seqlens: None = None,
        rotary_pos_emb: None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_: object,
    ) -> Float[Tensor, "n T D"]:
        """Attend inside each image; positions are the same for all."""
        assert position_embeddings is not None
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attended = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(attended.transpose(1, 2).flatten(2))


def use_batched_attention(visual: Qwen3VLVisionModel) -> None:
    """Swap each block's attention for the batched one; to be called before weights are loaded."""
    for block in visual.blocks:
        block.attn = BatchedVisionAttention(visual.config)


def encode_images(
    visual: Qwen3VLVisionModel, patches: Float[Tensor, "n T P"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "n M D"], list[Float[Tensor, "n M D"]]]:
    """Merged tokens of each image and its deepstack features, for images of one size.

    Args:
        visual: the vision tower, prepared by `use_batched_attention`.
        patches: pixels of each patch in Qwen's order.
        grid: patches in height and width.
    """
    # The convolution's kernel is the whole patch: as a matrix product it is faster, above all backward.
    kernel = visual.patch_embed.proj
    x = nn.functional.linear(patches, kernel.weight.flatten(1), kernel.bias)
    x = x + _position_embedding(visual, grid)
    rotary = _rotary_angle(visual, grid)
    angle = torch.cat((rotary, rotary), dim=-1)
    positions = (angle.cos(), angle.sin())
    deepstack = []
    for index, block in enumerate(visual.blocks):
        x = block(x, cu_seqlens=None, position_embeddings=positions)
        if index in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
            deepstack.append(_merge(merger, x))
    return _merge(visual.merger, x), deepstack


def _merge(merger: nn.Module, x: Float[Tensor, "n T D"]) -> Float[Tensor, "n M E"]:
    return merger(x.flatten(0, 1)).unflatten(0, (x.shape[0], -1))


def _in_blocks(table: Float[Tensor, "h w D"]) -> Float[Tensor, "T D"]:
    """Rows and columns in Qwen's patch order: blocks of 2 x 2 patches."""
    return table.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).transpose(1, 2).flatten(0, 3)


def _position_embedding(visual: Qwen3VLVisionModel, grid: tuple[int, int]) -> Float[Tensor, "T D"]:
    """The learned grid of positions, read bilinearly at each patch.

    transformers' own goes through Python lists, which neither a recording of the computation nor a CUDA graph can
    hold; the sums are the same, in the same order.
    """
    side, device = visual.num_grid_per_side, visual.pos_embed.weight.device
    rows, columns = (torch.linspace(0, side - 1, length, device=device) for length in grid)
    low_row, low_column = rows.int(), columns.int()
    high_row, high_column = (low_row + 1).clip(max=side - 1), (low_column + 1).clip(max=side - 1)
    down, right = (rows - low_row)[:, None], (columns - low_column)[None]
    corners = (
        (low_row, low_column, (1 - down) * (1 - right)),
        (low_row, high_column, (1 - down) * right),
        (high_row, low_column, down * (1 - right)),
        (high_row, high_column, down * right),
    )
    read = [
        visual.pos_embed(row[:, None] * side + column[None]) * weight.to(visual.pos_embed.weight.dtype)[:, :, None]
        for row, column, weight in corners
    ]
    return _in_blocks(read[0] + read[1] + read[2] + read[3])


def _rotary_angle(visual: Qwen3VLVisionModel, grid: tuple[int, int]) -> Float[Tensor, "T d"]:
    """The rotary angles of each patch: of its row, then of its column."""
    frequency = visual.rotary_pos_emb.inv_freq
    rows, columns = (torch.arange(length, device=frequency.device, dtype=frequency.dtype) for length in grid)
    place = torch.stack([rows[:, None].expand(grid), columns[None].expand(grid)], dim=-1)
    return (_in_blocks(place)[:, :, None] * frequency).flatten(1)
