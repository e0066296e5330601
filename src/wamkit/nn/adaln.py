"""Adaptive layer normalisation: a condition scales, shifts and gates a block."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention import Attention
from wamkit.nn.feed_forward import FeedForward


class AdaLNZeroBlock(nn.Module):
    """DiT block with AdaLN-zero: six modulations from the condition, all zero at first, so it starts as identity.

    LaWAM preferred it to adding the latent action to the tokens, which had loss spikes (appendix C.1).
    """

    def __init__(self, width: int, heads: int, *, ratio: float = 4.0) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.feed_forward = FeedForward(width, ratio=ratio)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B D"],
        mask: Bool[Tensor, "#B 1 N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """``condition`` is one vector for each sample."""
        modulation = self.modulation(nn.functional.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        normed = self.attention_norm(x) * (1 + scale_attention) + shift_attention
        x = x + gate_attention * self.attention(normed, mask=mask)
        normed = self.feed_forward_norm(x) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.feed_forward(normed)


class AdaNorm(nn.Module):
    """Non-affine layer norm, then a scale and a shift from a condition (the norm of GR00T's action DiT)."""

    def __init__(self, width: int, condition_width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.modulation = nn.Linear(condition_width, 2 * width)

    def modulate(self, condition: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch E"]:
        """Scale and shift, side by side; may be computed for all denoise steps ahead of the loop."""
        return self.modulation(nn.functional.silu(condition))

    def forward(
        self, x: Float[Tensor, "*batch N D"], modulation: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch N D"]:
        """``modulation`` comes from `modulate`."""
        scale, shift = modulation.unsqueeze(-2).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift
