"""What the recipes of the causal models share: tokenizer, sequences of frames, sequences with actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from wamkit.data.windows import WindowSpec
from wamkit.models.causal_config import CausalModelConfig
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig


def stage(
    name: str,
    window: WindowSpec,
    steps: int,
    batch_size: int,
    *,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> StageConfig:
    """One stage, with what all of them have alike."""
    return StageConfig(
        name=name,
        window=window,
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        optimizer=optimizer,
        betas=(0.9, 0.95),
        warmup_steps=steps // 10,
    )


def windows(model: CausalModelConfig) -> dict[str, WindowSpec]:
    """What the stages look at.

    Returns:
        ``picture``: the present alone; ``short``: the first frame and one more; ``clip``: a whole sequence's pictures;
        ``frames``: its latents, encoded once and stored; ``sequence``: with its actions.
    """
    picture = WindowSpec(cameras=model.cameras, resolution=model.resolution)
    clip = replace(picture, frame_offsets_s=model.frame_offsets_s)
    frames = replace(clip, feature_views=1)
    return {
        "picture": picture,
        "short": replace(picture, frame_offsets_s=model.offsets_s(1)),
        "clip": clip,
        "frames": frames,
        "sequence": replace(frames, chunk_s=model.sequence_s, max_actions=model.sequence_actions),
    }


def causal_metaworld(name: str, stages: tuple[StageConfig, ...], model_config: Any = None) -> TrainConfig:
    """A run of ``tiny`` over these stages; lengths fit a laptop without a GPU.

    Args:
        name: of the model.
        stages: in order.
        model_config: where it is not the preset's.
    """
    return TrainConfig(
        name=f"{name}_metaworld",
        model=name,
        preset="tiny",
        model_config=model_config,
        dataset=DatasetConfig(holdout_episodes=3),
        stages=stages,
        save_every=400,
        output_dir=f"outputs/{name}_metaworld",
    )
