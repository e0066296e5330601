"""From the trunk's latent-action queries to a latent action of whichever kind the model was composed with."""

from __future__ import annotations

from torch import nn

from wamkit.dynamics.latent_action import LatentActionModel
from wamkit.dynamics.linear_transition import LatentActionTokenizer
from wamkit.nn.query_pooling import QueryPooling

_NARROW = 64
"""Width at which a latent action of few numbers is read before it is projected to them."""


def latent_action_head(lam: LatentActionModel | LatentActionTokenizer, trunk_width: int) -> nn.Module:
    """Tokens of the trunk [B, L, E] to the latent action [B, Q, Z]."""
    if isinstance(lam, LatentActionModel):
        heads = min(8, lam.latent_width // 4)
        return QueryPooling(lam.queries, lam.latent_width, heads, context_width=trunk_width)
    # The pooling ends in a LayerNorm over its width, which would leave a latent action of four numbers only two.
    pooling = QueryPooling(lam.queries, _NARROW, 4, context_width=trunk_width)
    return nn.Sequential(pooling, nn.Linear(_NARROW, lam.latent_width))
