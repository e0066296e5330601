"""Fast-WAM on recorded MetaWorld demonstrations, from the VAE to the policy."""

from __future__ import annotations

from wamkit.models.fast_wam.config import preset
from wamkit.recipes._video_policy import video_policy
from wamkit.training.config import TrainConfig


def fast_wam_metaworld() -> TrainConfig:
    """Fast-WAM ``tiny``; what it reached with these steps stands in docs/log.md.

    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train fast_wam_metaworld --dataset.roots DIR``.
    """
    return video_policy("fast_wam", preset("tiny"), "metaworld", policy_steps=800)
