"""The plain pre-norm transformer block."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention import Attention
from wamkit.nn.feed_forward import Activation, FeedForward


class TransformerBlock(nn.Module):
    """x + attention(LN x), then x + feed-forward(LN x)."""

    def __init__(
        self, width: int, heads: int, *, ratio: float = 4.0, activation: Activation = "gelu", eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, ratio=ratio, activation=activation)

    def forward(
        self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "#B 1 N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """``mask`` is True where attention is allowed."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.feed_forward(self.feed_forward_norm(x))
