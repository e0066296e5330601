"""Multi-head attention, with keys and values that can be projected once and used again."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from wamkit.errors import MisfitError


class KeysValues(NamedTuple):
    """Projected keys and values of a context, ready for attention."""

    keys: Float[Tensor, "B heads M d"]
    values: Float[Tensor, "B heads M d"]


def attend(
    queries: Float[Tensor, "B heads N d"],
    keys: Float[Tensor, "B heads M d"],
    values: Float[Tensor, "B heads M d"],
    mask: Bool[Tensor, "#B 1 #N M"] | None = None,
) -> Float[Tensor, "B heads N d"]:
    """Softmax attention; ``mask`` is True where attention is allowed. A query that may see nothing gets no NaN.

    On a CPU in bfloat16 torch's fused kernel is 3 to 8 times slower, forward and backward, than two batched
    matrix products for the few hundred tokens of a policy, so there the products are written out. The function can be
    overridden like torch's own, so that whoever records a computation may record attention as one operation.
    """
    if has_torch_function((queries, keys, values)):
        return handle_torch_function(attend, (queries, keys, values), queries, keys, values, mask)
    if queries.device.type != "cpu" or queries.dtype == torch.float32:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ values


class Attention(nn.Module):
    """Attention of ``width`` with ``heads`` heads over itself or over a context of ``context_width``."""

    def __init__(self, width: int, heads: int, *, context_width: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise MisfitError(f"attention width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_kv = nn.Linear(context_width or width, 2 * width, bias=bias)
        self.to_out = nn.Linear(width, width, bias=bias)

    def _split(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, context: Float[Tensor, "B M C"]) -> KeysValues:
        """Keys and values of a context; a denoiser calls this once for all its steps."""
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        return KeysValues(self._split(keys), self._split(values))

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        context: KeysValues | None = None,
        mask: Bool[Tensor, "#B 1 #N M"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend from ``x`` to ``context`` (itself where None); ``mask`` is True where attention is allowed."""
        keys, values = self.project(x) if context is None else context
        attended = attend(self._split(self.to_q(x)), keys, values, mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))
