"""Learned queries that read a set of tokens by attention."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention import Attention
from wamkit.nn.feed_forward import FeedForward


class QueryPooling(nn.Module):
    """One block: learned queries attend to the tokens, then a feed-forward, then a final norm."""

    def __init__(self, queries: int, width: int, heads: int, *, context_width: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width)
        self.attention = Attention(width, heads, context_width=context_width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ratio=ratio)
        self.final_norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "B N C"], mask: Bool[Tensor, "B 1 1 N"] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """``mask`` is True for the tokens that may be read."""
        context = self.attention.project(self.context_norm(tokens))
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        pooled = queries + self.attention(self.query_norm(queries), context, mask)
        return self.final_norm(pooled + self.feed_forward(self.feed_forward_norm(pooled)))
