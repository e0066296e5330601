"""What one stage of a model asks of a data set, learned from the model itself, before any data is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from wamkit.data.windows import WindowSpec
from wamkit.models import registry
from wamkit.models.base import WorldActionModel


class SecondsAhead(float):
    """An offset in seconds where LeRobot expects a number of frames.

    LeRobot divides the numbers that a policy asks for by the data set's rate to get seconds, and a policy does not know
    that rate when it is asked. Divided by a rate, this one becomes the time of the frame nearest to it.
    """

    def __truediv__(self, rate_hz: float) -> float:
        return round(float(self) * rate_hz) / rate_hz


@dataclass(frozen=True, kw_only=True)
class StageView:
    """The shape of one stage's windows."""

    frame_offsets_s: tuple[float, ...]
    """Seconds from the present; the first is 0."""
    resolution: tuple[int, int]
    """(height, width) that the model sees."""
    chunk_s: float
    """tau, the physical length of an action chunk."""
    max_actions: int
    """K, to which chunks are padded."""
    spec: WindowSpec
    """The same as wamkit's own sampler takes it; counts the actions of a chunk at a rate."""


def skeleton(model_name: str, config: Any) -> WorldActionModel:
    """A model without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        return registry.model_class(model_name)(config)


def stage_view(model: WorldActionModel, stage: str) -> StageView:
    """What ``stage`` asks for, read off the window that every model fakes for tests.

    Args:
        model: A `skeleton` will do.
        stage: One of its stages.
    """
    window = model.fake_window(1, stage=stage)
    frames = next(iter(window.frames.values()))
    offsets = tuple(round(float(time), 6) for time in window.frame_times[0])
    steps = int(window.action_valid[0].any(dim=-1).sum())
    chunk_s = round(steps / float(window.rate_hz[0]), 6)
    spec = WindowSpec(
        frame_offsets_s=offsets,
        chunk_s=chunk_s,
        valid_steps=getattr(model.config, "valid_steps", "round"),
        max_actions=window.actions.shape[1],
    )
    return StageView(
        frame_offsets_s=offsets,
        resolution=(frames.shape[-2], frames.shape[-1]),
        chunk_s=chunk_s,
        max_actions=window.actions.shape[1],
        spec=spec,
    )
