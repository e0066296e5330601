"""The two-layer feed-forward of a transformer block."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear; ``ratio`` times wider in the middle."""

    def __init__(
        self, width: int, *, ratio: float = 4.0, approximate: Literal["none", "tanh"] = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.activation = nn.GELU(approximate=approximate)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Apply to each token alone."""
        return self.down(self.dropout(self.activation(self.up(x))))
