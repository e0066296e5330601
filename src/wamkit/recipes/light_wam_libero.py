"""Light-WAM on LIBERO's two cameras, from the VAE to the policy."""

from __future__ import annotations

from dataclasses import replace

from wamkit.models.light_wam.config import LightWAMConfig, preset
from wamkit.recipes._video_policy import video_policy
from wamkit.training.config import TrainConfig


def libero_model() -> LightWAMConfig:
    """``tiny`` with LIBERO's cameras side by side, 0.8 s at its 20 Hz, and room for its longest instruction."""
    model = preset("tiny")
    return replace(
        model,
        cameras=("image", "image2"),
        canvas="side_by_side",
        horizon_s=0.8,
        text=replace(model.text, max_tokens=128),
    )


def light_wam_libero() -> TrainConfig:
    """Light-WAM ``tiny``; its steps are an estimate of what fits, no result stands behind them yet.

    Record first: ``wam record --env.type libero --env.task libero_object --episodes 20 --output_dir DIR``, then
    ``wam train light_wam_libero --dataset.roots DIR``. Published LIBERO data sets in LeRobot's format train the same
    way; docs/libero.md says what to tell of their cameras.
    """
    return video_policy("light_wam", libero_model(), "libero", policy_steps=800)
