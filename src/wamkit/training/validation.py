"""Losses on held-out episodes: fixed windows, fixed noise, nothing random left but the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wamkit.training.distributed import summed
from wamkit.training.seeding import derive_seed, seed_everything
from wamkit.types import Window


@torch.no_grad()
def validate(objective: nn.Module, windows: Iterable[Window], device: torch.device, seed: int) -> dict[str, float]:
    """Mean of each loss and metric over ``windows``, in evaluation mode (a collective).

    Args:
        objective: A wrapped `StageObjective`.
        windows: The held-out windows, the same at each call; with several ranks, this rank's share of each batch.
        device: Where the model is.
        seed: Fixes the noise that the losses draw.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    generator = torch.Generator(device)
    with evaluation_mode(objective):
        for index, window in enumerate(windows):
            seed_everything(derive_seed(seed, index), device)
            _, parts = objective(window.to(device), generator.manual_seed(derive_seed(seed, index, "noise")))
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
                counts[name] = counts.get(name, 0) + 1
    if not sums:
        return {}
    totals = summed(torch.stack(list(sums.values()))).tolist()
    return {name: total / counts[name] for name, total in zip(sums, totals, strict=True)}


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """All submodules in evaluation mode inside the block, each as it was afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
