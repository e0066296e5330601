"""The two-layer feed-forward of a transformer block."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "relu"]


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear; ``ratio`` times wider in the middle."""

    def __init__(
        self, width: int, *, ratio: float = 4.0, activation: Activation = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.activation = _activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Apply to each token alone."""
        return self.down(self.dropout(self.activation(self.up(x))))
