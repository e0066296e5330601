"""Light-WAM on recorded MetaWorld demonstrations, from the VAE to the policy."""

from __future__ import annotations

from dataclasses import replace

from wamkit.data.windows import WindowSpec
from wamkit.models.light_wam.config import preset
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig


def light_wam_metaworld() -> TrainConfig:
    """One language-conditioned policy for all tasks of the recordings; lengths fit a laptop without a GPU.

    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train light_wam_metaworld --dataset.roots DIR``.
    """
    model = preset("tiny")
    clip = WindowSpec(frame_offsets_s=model.frame_offsets_s, cameras=model.cameras, resolution=model.resolution)
    return TrainConfig(
        name="light_wam_metaworld",
        model="light_wam",
        preset="tiny",
        dataset=DatasetConfig(holdout_episodes=3),
        stages=(
            StageConfig(
                name="vae",
                window=clip,
                steps=400,
                batch_size=8,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                warmup_steps=30,
            ),
            StageConfig(
                name="video",
                # Latents of every clip, encoded once by the VAE that is now frozen; stage policy reads the same store.
                window=replace(clip, feature_views=1),
                steps=400,
                batch_size=32,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                warmup_steps=30,
            ),
            StageConfig(
                name="policy",
                window=replace(clip, feature_views=1, chunk_s=model.horizon_s, max_actions=model.max_actions),
                steps=1200,
                batch_size=32,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                warmup_steps=50,
            ),
        ),
        save_every=400,
        output_dir="outputs/light_wam_metaworld",
    )
