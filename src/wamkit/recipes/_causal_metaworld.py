"""What the recipes of the causal models share: the windows of sequences, and the run around the stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wamkit.data.windows import WindowSpec
from wamkit.models.causal.config import CausalModelConfig
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig


def windows(model: CausalModelConfig) -> dict[str, WindowSpec]:
    """What the stages look at.

    Returns:
        ``picture``: the present alone; ``short``: the first frame and two more; ``clip``: a whole sequence's pictures;
        ``frames``: its latents, encoded once and stored; ``sequence``: with its actions.
    """
    picture = WindowSpec(cameras=model.cameras, resolution=model.resolution)
    clip = replace(picture, frame_offsets_s=model.frame_offsets_s)
    frames = replace(clip, feature_views=1)
    return {
        "picture": picture,
        "short": replace(picture, frame_offsets_s=model.offsets_s(min(2, model.training_frames))),
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
