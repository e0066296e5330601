"""A narrow correction of a token stream: the adapter between a frozen backbone and what reads it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ResidualAdapter(nn.Module):
    """x + up(GELU(down(LN x))) (Light-WAM); the last layer starts at zero, so the backbone is unchanged at first."""

    def __init__(self, width: int, bottleneck: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, bottleneck)
        self.activation = nn.GELU(approximate="tanh")
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The adapted tokens; their difference from ``x`` is the adapter's own contribution."""
        return x + self.up(self.activation(self.down(self.norm(x))))
