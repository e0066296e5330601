"""Mean and deviation of a stream of values, kept while a module trains, for whoever needs them standardised."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class RunningScale(nn.Module):
    """Brings values to zero mean and unit variance, dimension by dimension, and back.

    The statistics follow the values that `update` is shown: an average over the first ``memory`` batches, then an
    exponential one. They are saved with the weights and carry no gradient.
    """

    mean: Tensor
    variance: Tensor
    batches_seen: Tensor

    def __init__(self, width: int, memory: int = 100) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    @property
    def deviation(self) -> Float[Tensor, "D"]:
        """Standard deviation of each dimension; never zero."""
        return self.variance.clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def update(self, values: Float[Tensor, "B *rest D"], valid: Bool[Tensor, "B"]) -> None:
        """Take in the valid samples of a batch; one with fewer than two values of a dimension changes nothing."""
        # Without indexing by the mask and without reading a tensor: both would make a GPU wait for the host.
        rows = values.flatten(1, -2).to(self.mean.dtype)
        known = valid[:, None, None].expand(-1, rows.shape[1], 1)
        count = known.sum()
        enough = (count >= 2).to(self.mean.dtype)
        centre = torch.where(known, rows, 0.0).sum(dim=(0, 1)) / count.clamp(min=1)
        spread = torch.where(known, (rows - centre).square(), 0.0).sum(dim=(0, 1)) / count.clamp(min=1)
        self.batches_seen += (count >= 2).to(self.batches_seen.dtype)
        share = enough / self.batches_seen.clamp(1, self.memory)
        step = centre - self.mean
        # Of a mixture of the old distribution and the batch: the distance of their means is spread as well.
        self.variance.mul_(1.0 - share).add_(share * spread + share * (1.0 - share) * step.square())
        self.mean.add_(share * step)

    def standardise(self, values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """From their own units to standard ones."""
        return (values - self.mean) / self.deviation

    def restore(self, values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The inverse of `standardise`."""
        return values * self.deviation + self.mean
