"""The mask of a causal sequence for FlexAttention, which skips what is masked instead of computing it.

A dense mask of a sequence of N tokens holds N^2 elements for each sample; FlexAttention evaluates the same definition
(`wamkit.dynamics.causal_layout.visible`) block by block. Results are equal up to rounding; which one runs is a choice
of the config and never made silently.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from wamkit.dynamics.causal_layout import Layout, Order, dense_mask, seen_in_forward_mode, visible
from wamkit.dynamics.mixture_of_transformers import Attend
from wamkit.errors import WamkitError

AttentionKind = Literal["sdpa", "flex"]


class AttentionUnavailable(WamkitError):
    """A kind of attention that this device cannot do."""


def flex_attend(
    layout: Layout, forward: Bool[Tensor, "B"], readable: Bool[Tensor, "B N"], *, window: int, order: Order
) -> Attend:
    """FlexAttention under the mask of `dense_mask`, whose arguments these are. Compiled where there is a GPU.

    What it returns raises `AttentionUnavailable` where a gradient is wanted on a CPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def allowed(sample: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = visible(layout, query, key, window=window, order=order)
        besides = seen_in_forward_mode(layout, query, key) & forward[sample]
        return (seen | besides) & readable[sample, key]

    batch, tokens = readable.shape
    device = readable.device
    # FlexAttention counts the mask's arguments, which whatever checks types around a named function would hide.
    mask = create_block_mask(lambda b, h, q, k: allowed(b, q, k), batch, None, tokens, tokens, device=str(device))
    run = torch.compile(flex_attention, dynamic=True) if device.type == "cuda" else flex_attention

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if device.type == "cpu" and torch.is_grad_enabled() and queries.requires_grad:
            raise AttentionUnavailable("FlexAttention has no gradient on a CPU: set attention to 'sdpa', or use a GPU")
        attended = run(queries, keys, values, block_mask=mask)
        assert isinstance(attended, Tensor)  # alone: nothing else was asked for
        return attended

    return attend


def causal_attention(
    kind: AttentionKind,
    layout: Layout,
    forward: Bool[Tensor, "B"],
    readable: Bool[Tensor, "B N"],
    *,
    window: int,
    order: Order,
) -> Bool[Tensor, "B 1 N N"] | Attend:
    """What `wamkit.dynamics.mixture_of_transformers.joint` takes as its mask; arguments as in `dense_mask`."""
    chosen = flex_attend if kind == "flex" else dense_mask
    return chosen(layout, forward, readable, window=window, order=order)
