"""What every model's chunk is in physical time, and how widths of several embodiments meet in one tensor."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.errors import MisfitError
from wamkit.types import Window

StepRounding = Literal["round", "floor"]


def chunk_times(
    rate_hz: Float[Tensor, "B"], *, horizon_s: float, max_actions: int, valid_steps: StepRounding
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Time stamps i/h of a chunk in seconds, and which of its tokens lie inside the horizon (LaWAM Eq. 6).

    Args:
        rate_hz: h, each sample's control rate.
        horizon_s: tau.
        max_actions: K, tokens of a chunk, padding included.
        valid_steps: how tau * h becomes a number of actions.
    """
    exact = horizon_s * rate_hz
    # A horizon of 0.3 s at 20 Hz is 5.999... in floating point: floor what is meant, not what is stored.
    steps = exact.round() if valid_steps == "round" else (exact + 1e-4).floor()
    index = torch.arange(max_actions, device=rate_hz.device)
    return index / rate_hz[:, None], index < steps[:, None]


def padded(x: Tensor, width: int) -> Tensor:
    """Zeros (or False) on the last axis up to ``width``.

    Raises:
        MisfitError: the data are wider than that.
    """
    if x.shape[-1] > width:
        raise MisfitError(f"the data have {x.shape[-1]} dimensions, the model takes {width}: use a wider config")
    return nn.functional.pad(x, (0, width - x.shape[-1]))


def action_targets(window: Window, width: int) -> tuple[Float[Tensor, "B K A"], Bool[Tensor, "B K A"]]:
    """A window's actions padded to the model's width, zero where there are none, and which elements count.

    None of a person's video counts (embodiment 0).

    Raises:
        MisfitError: the actions are wider than that.
    """
    clean = padded(torch.where(window.action_valid, window.actions, 0.0), width)
    return clean, padded(window.action_valid, width) & (window.embodiment != 0)[:, None, None]
