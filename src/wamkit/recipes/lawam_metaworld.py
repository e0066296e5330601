"""LaWAM on recorded MetaWorld demonstrations, from the encoder to the policy."""

from __future__ import annotations

from dataclasses import replace

from wamkit.data.windows import WindowSpec
from wamkit.models.lawam.config import preset
from wamkit.recipes._stage import stage
from wamkit.training.config import DatasetConfig, TrainConfig


def lawam_metaworld() -> TrainConfig:
    """One language-conditioned policy for all tasks of the recordings; lengths fit a laptop without a GPU.

    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train lawam_metaworld --dataset.roots DIR``.
    """
    model = preset("tiny")
    here = WindowSpec(frame_offsets_s=(0.0,), cameras=model.cameras)
    horizon = replace(here, frame_offsets_s=(0.0, model.horizon_s))
    # Two views (LaWAM C.5): the encoder infers in one, LaWM predicts in the other. The store has the frames as they are
    # and one augmentation of each episode.
    both_views = replace(horizon, feature_views=2)
    acting = replace(horizon, chunk_s=model.horizon_s, max_actions=model.max_actions, feature_views=1)
    return TrainConfig(
        name="lawam_metaworld",
        model="lawam",
        preset="tiny",
        dataset=DatasetConfig(holdout_episodes=3),
        stages=(
            stage("encoder", here, 400, 64, warmup_steps=50),
            stage("latent_action", both_views, 300, 32, warmup_steps=50),
            # Muon needs about half the steps of AdamW to the same loss (docs/log.md).
            stage("policy", acting, 500, 32, warmup_steps=50, optimizer="muon"),
        ),
        save_every=400,
        output_dir="outputs/lawam_metaworld",
    )
