"""The two sides of a generative adversarial network with the hinge loss (arXiv 1705.02894), per element of a score.

Scores are high for what looks real.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def critic_hinge(real: Float[Tensor, "*shape"], made: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the critic minimises: max(0, 1 - D(real)) + max(0, 1 + D(made)), over two as is usual."""
    return 0.5 * (F.relu(1.0 - real) + F.relu(1.0 + made))


def generator_hinge(made: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the generator minimises: -D(made)."""
    return -made
