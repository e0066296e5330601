"""A stage of a recipe, with the settings that all recipes here have alike."""

from __future__ import annotations

from typing import Literal

from wamkit.data.windows import WindowSpec
from wamkit.training.config import StageConfig


def stage(
    name: str,
    window: WindowSpec,
    steps: int,
    batch_size: int,
    *,
    warmup_steps: int | None = None,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> StageConfig:
    """One stage at the learning rate 1e-3.

    Args:
        name: of the model's stages.
        window: what it looks at.
        steps: of the optimiser.
        batch_size: windows of a step.
        warmup_steps: None: a tenth of the steps.
        optimizer: see `StageConfig`.
    """
    return StageConfig(
        name=name,
        window=window,
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        optimizer=optimizer,
        betas=(0.9, 0.95),
        warmup_steps=steps // 10 if warmup_steps is None else warmup_steps,
    )
