"""A flow decoder as a velocity field: integrated by Euler's method, or guided first so that it in-paints a chunk.

In-painting is a field made of a field, so a decoder that offers its field can in-paint without knowing of it.
Real-time chunking, Black, Galliker and Levine 2025 (arXiv 2506.07339), Eq. 2 to 5; its time tau is 1 - noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

VelocityField = Callable[[Tensor, int], Tensor]
"""(chunks [B, K, A], number of the Euler step) -> velocity towards the data [B, K, A]; or in groups, [B, f, n, A]."""

MAX_GUIDANCE = 5.0
"""beta of the paper: without a bound the guidance weight is infinite at pure noise."""


def integrate(field: VelocityField, noise: Float[Tensor, "B K A"], steps: int) -> Float[Tensor, "B K A"]:
    """From noise to the data in ``steps`` equal Euler steps."""
    x = noise
    for step in range(steps):
        x = x + field(x, step) / steps
    return x


def soft_mask(overlap: int, delay: int, length: int) -> Float[Tensor, "K"]:
    """How much each action of a new chunk must agree with the old plan (Eq. 5).

    1 for the ``delay`` actions that will be executed before the chunk is there; then, up to the end of the old plan,
    c (e^c - 1) / (e - 1) with c falling linearly; 0 where the old plan has ended.

    Args:
        overlap: Actions of the old plan from the observation on (H - s of the paper).
        delay: Of these, the ones that are executed in any case.
        length: K of the result.
    """
    index = torch.arange(length, dtype=torch.float32)
    falling = (overlap - index) / (overlap - delay + 1)
    soft = falling * torch.expm1(falling) / torch.expm1(torch.tensor(1.0))
    return torch.where(index < delay, 1.0, torch.where(index < overlap, soft, 0.0))


def guidance_weight(noise_level: float, bound: float = MAX_GUIDANCE) -> float:
    """min(bound, (1 - tau) / (tau r^2)) with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2) (Eq. 2, 4)."""
    tau = 1.0 - noise_level
    if tau <= 0.0 or noise_level <= 0.0:
        return bound
    return min(bound, (tau**2 + noise_level**2) / (tau * noise_level))


def inpainting(
    field: VelocityField,
    known: Float[Tensor, "B *chunk A"],
    weights: Float[Tensor, "B *chunk A"],
    levels: Sequence[float],
    *,
    bound: float = MAX_GUIDANCE,
) -> VelocityField:
    """The field whose chunks agree with ``known``, as far as the weights say (pseudo-inverse guidance, Eq. 2 and 3).

    Each step estimates the finished chunk, x^ = x + s v(x), and adds the gradient of its weighted agreement with what
    is known: a vector-Jacobian product through one call of the field.

    Args:
        field: The decoder's own.
        known: The old plan, aligned with the new chunk; anything where the weight is 0.
        weights: In [0, 1]; 0 leaves an element to the decoder.
        levels: Noise levels at which the Euler steps start, and the one at which the last ends.
        bound: Of the guidance weight (beta). It is bounded by one over the step's length too (ours, not the paper's):
            where steps are few or uneven, one would go beyond what is known.
    """

    def guided(x: Tensor, step: int) -> Tensor:
        level, following = levels[step], levels[step + 1]
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            velocity = field(start, step)
            finished = start + level * velocity
            error = (weights * (known - finished)).detach()
            (gradient,) = torch.autograd.grad(finished, start, grad_outputs=error.to(finished.dtype))
        return velocity.detach() + guidance_weight(level, min(bound, 1.0 / (level - following))) * gradient

    return guided
