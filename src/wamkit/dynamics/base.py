"""What every latent-action model offers: an inverse model, a forward model, and the losses of a pair of frames.

LaWAM's latent-action model (`wamkit.dynamics.latent_action`) and RepWAM's latent-action tokenizer
(`wamkit.dynamics.linear_transition`) differ in everything else, so either serves either world action model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.errors import WamkitError
from wamkit.losses.reduction import masked_mean
from wamkit.types import LossTerm


class LatentActionError(WamkitError):
    """A latent-action model that cannot be built, or latents that it cannot read."""


class Posterior(NamedTuple):
    """The Gaussian q(z | u, u_T) over the latent action between two frames."""

    mean: Float[Tensor, "B Q Z"]
    log_variance: Float[Tensor, "B Q Z"]

    @classmethod
    def point(cls, value: Float[Tensor, "B Q Z"]) -> Posterior:
        """All mass at one value: a deterministic inverse model."""
        return cls(value, torch.full_like(value, -torch.inf))

    def sample(self, noise: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B Q Z"]:
        """Reparameterised draw."""
        return self.mean + (0.5 * self.log_variance).exp() * noise


@dataclass(frozen=True, kw_only=True)
class FramePairs:
    """Two frames of each sample, some time apart, in a frozen encoder's space."""

    present: Float[Tensor, "B N D"]
    future: Float[Tensor, "B N D"]
    valid: Bool[Tensor, "B"]
    """False where a frame is missing or lies past the episode's end; it may then hold anything finite."""
    decoded_present: Float[Tensor, "B N D"] | None = None
    """The same two frames under another augmentation: the latent action is read from one and used on the other, so
    that it cannot carry pixel layout. None: read and used on the same."""
    decoded_future: Float[Tensor, "B N D"] | None = None

    @property
    def decoded(self) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]:
        """Present and future as the forward model meets them."""
        if self.decoded_present is None or self.decoded_future is None:
            return self.present, self.future
        return self.decoded_present, self.decoded_future

    @classmethod
    def consecutive(cls, frames: Float[Tensor, "B F N D"], valid: Bool[Tensor, "B F"]) -> FramePairs:
        """Each frame of a clip with the next: B x (F - 1) pairs, those of one sample one after another.

        Raises:
            LatentActionError: the clips have fewer than two frames.
        """
        if frames.shape[1] < 2:
            raise LatentActionError(
                f"a latent action lies between two frames, and these clips have {frames.shape[1]}: use longer windows"
            )
        both = valid[:, :-1] & valid[:, 1:]
        return cls(present=frames[:, :-1].flatten(0, 1), future=frames[:, 1:].flatten(0, 1), valid=both.flatten())


class PairLosses(NamedTuple):
    """The losses of some pairs, a value for each, and the latent action that they were computed with."""

    terms: Mapping[str, LossTerm]
    latent_action: Float[Tensor, "B Q Z"]

    def by_sample(self, samples: int) -> dict[str, LossTerm]:
        """The terms of `FramePairs.consecutive` averaged over each sample's valid pairs."""
        return {name: _folded(term, samples) for name, term in self.terms.items()}


def _folded(term: LossTerm, samples: int) -> LossTerm:
    value, valid = masked_mean(term.value.unflatten(0, (samples, -1)), term.valid.unflatten(0, (samples, -1)))
    return LossTerm(value=value, valid=valid, weight=term.weight)


class LatentDynamics(nn.Module):
    """A latent-action model: it learns from pairs of frames alone, without actions."""

    decoder: nn.Module
    """The forward model: ``decoder(present [B N D], latent_action [B Q Z])`` is the predicted future [B N D].
    A policy may go on training it while the inverse model stays frozen."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """Tokens of a latent action, Q."""

    @property
    @abstractmethod
    def latent_width(self) -> int:
        """Numbers of each, Z."""

    @abstractmethod
    def infer(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Posterior:
        """Inverse dynamics: the latent action between two frames."""

    @abstractmethod
    def losses(self, pairs: FramePairs, generator: torch.Generator | None = None) -> PairLosses:
        """What training minimises, for each pair."""
