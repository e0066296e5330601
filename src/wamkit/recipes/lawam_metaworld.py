"""LaWAM on recorded MetaWorld demonstrations, from the encoder to the policy."""

from __future__ import annotations

from wamkit.data.windows import WindowSpec
from wamkit.models.lawam.config import preset
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig


def lawam_metaworld() -> TrainConfig:
    """One language-conditioned policy for all tasks of the recordings; lengths fit a laptop without a GPU.

    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train lawam_metaworld --dataset.roots DIR``.
    """
    model = preset("tiny")
    here, horizon = (0.0,), (0.0, model.horizon_s)
    return TrainConfig(
        name="lawam_metaworld",
        model="lawam",
        preset="tiny",
        dataset=DatasetConfig(holdout_episodes=3),
        stages=(
            StageConfig(
                name="encoder",
                window=WindowSpec(frame_offsets_s=here, cameras=model.cameras),
                steps=400,
                batch_size=64,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                warmup_steps=50,
            ),
            StageConfig(
                name="latent_action",
                # Two augmented views (LaWAM C.5): the encoder infers in one, LaWM predicts in the other.
                window=WindowSpec(frame_offsets_s=horizon, cameras=model.cameras, feature_views=2),
                steps=300,
                batch_size=32,
                learning_rate=1e-3,
                betas=(0.9, 0.95),
                warmup_steps=50,
            ),
            StageConfig(
                name="policy",
                window=WindowSpec(
                    frame_offsets_s=horizon,
                    chunk_s=model.horizon_s,
                    max_actions=model.max_actions,
                    cameras=model.cameras,
                    feature_views=1,
                ),
                steps=500,
                batch_size=32,
                learning_rate=1e-3,
                # Needs about half the steps of AdamW to the same loss (docs/log.md).
                optimizer="muon",
                betas=(0.9, 0.95),
                warmup_steps=50,
            ),
        ),
        save_every=400,
        output_dir="outputs/lawam_metaworld",
    )
