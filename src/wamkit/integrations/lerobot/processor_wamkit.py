"""LeRobot's pipelines around a policy: rename, batch, device and normalisation before it, the inverse after it.

They are LeRobot's own steps with the data set's statistics, so that its overrides, renaming and statistics exchange
work as for any policy.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from wamkit.integrations.lerobot.configuration_wamkit import DEFAULT_NORMALIZATION, POLICY_TYPES, WamkitConfig


def make_pre_post_processors(config: WamkitConfig, dataset_stats: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The pre- and post-processing pipelines of a fresh policy.

    Args:
        config: Of any model.
        dataset_stats: LeRobot's statistics by feature.
    """
    config.normalization_mapping = config.normalization_mapping or dict(DEFAULT_NORMALIZATION)
    return make_default_pre_post_processors(config, dataset_stats)


def __getattr__(name: str) -> Any:
    # LeRobot looks for make_<model>_pre_post_processors here.
    for model in POLICY_TYPES:
        if name == f"make_{model}_pre_post_processors":
            return make_pre_post_processors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
