"""A recipe's whole road at toy size: two steps of every stage on a recording, and what they leave behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from wamkit.training.config import DatasetConfig, TrainConfig


def short_run(recipe: TrainConfig, recording: Path, output_dir: Path) -> TrainConfig:
    """The recipe on a processor, on this recording, in the time of a test."""
    return replace(
        recipe,
        dataset=DatasetConfig(roots=(str(recording),), holdout_episodes=1),
        stages=tuple(replace(stage, steps=2, batch_size=4, warmup_steps=0) for stage in recipe.stages),
        output_dir=str(output_dir),
        device="cpu",
        precision="fp32",
        validation_batches=1,
        logger="none",
    )


def weights_by_stage(folder: Path, stages: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """The weights that each stage ended with; a stage without a checkpoint of its own is an error."""
    checkpoints = [c for c in sorted((folder / "checkpoints").iterdir()) if not c.is_symlink()]
    weights = [load_file(checkpoint / "pretrained_model" / "model.safetensors") for checkpoint in checkpoints]
    return dict(zip(stages, weights, strict=True))


def latent_stores(folder: Path) -> list[Path]:
    """The stores of encoded clips; stages that share a frozen encoder share one."""
    return [store for store in (folder / "cache").iterdir() if store.name.startswith("latents-")]
