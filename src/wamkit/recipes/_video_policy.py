"""What the recipes of all models on a video backbone share: VAE, video, policy on recorded demonstrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wamkit.data.windows import WindowSpec
from wamkit.models.video.config import VideoModelConfig
from wamkit.recipes._stage import stage
from wamkit.training.config import DatasetConfig, TrainConfig


def video_policy(name: str, model: VideoModelConfig, environment: str, *, policy_steps: int) -> TrainConfig:
    """One language-conditioned policy for all tasks of the recordings; lengths fit a laptop without a GPU.

    Args:
        name: of the model.
        model: its config, which says what the windows hold.
        environment: what was recorded; the other half of the recipe's name.
        policy_steps: of the last stage.
    """
    clip = WindowSpec(frame_offsets_s=model.frame_offsets_s, cameras=model.cameras, resolution=model.resolution)
    # Latents of every clip, encoded once by the VAE that is then frozen; both later stages read the same store.
    stored = replace(clip, feature_views=1)

    acting = replace(stored, chunk_s=model.horizon_s, max_actions=model.max_actions)
    own: Any = None if environment == "metaworld" else model  # the presets without published weights are for MetaWorld
    return TrainConfig(
        name=f"{name}_{environment}",
        model=name,
        preset="tiny",
        model_config=own,
        dataset=DatasetConfig(holdout_episodes=3),
        stages=(
            stage("vae", clip, 400, 8, warmup_steps=30),
            stage("video", stored, 400, 32, warmup_steps=30),
            # With Muon instead of AdamW Light-WAM's loss falls somewhat faster (docs/log.md).
            stage("policy", acting, policy_steps, 32, warmup_steps=50, optimizer="muon"),
        ),
        save_every=400,
        output_dir=f"outputs/{name}_{environment}",
    )
