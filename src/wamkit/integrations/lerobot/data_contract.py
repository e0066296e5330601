"""The contract of a policy that LeRobot trains: the terms of `wamkit.data.contract`, from LeRobot's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lerobot.configs import PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STATE

from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.embodiments import EMBODIMENTS
from wamkit.data.lerobot_files import dimension_names, read_extra
from wamkit.integrations.lerobot.stage_view import StageView

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


def contract_of(
    meta: LeRobotDatasetMetadata,
    features: Mapping[str, PolicyFeature],
    cameras: Sequence[str],
    view: StageView,
    embodiment: str | None,
) -> Contract:
    """What a policy is trained on.

    Args:
        meta: Of the data set, with its statistics.
        features: What the policy sees, under its own names (the data set's may be renamed on the way).
        cameras: The policy's, the primary one first.
        view: Of the stage.
        embodiment: None: what the data set says, ``custom`` where that is no robot with a number.
    """
    extra = read_extra(Path(meta.root))
    told = extra.get("embodiment") or meta.robot_type
    body = embodiment or (told if told in EMBODIMENTS else "custom")
    shown = []
    for camera in cameras:
        key = f"{OBS_IMAGES}.{camera}"
        key = key if key in features else OBS_IMAGE
        shape = features[key].shape if key in features else (3, *view.resolution)
        shown.append(CameraContract(name=camera, recorded_as=camera, size=(int(shape[-2]), int(shape[-1]))))
    low, high = extra.get("action_low", ()), extra.get("action_high", ())
    return Contract(
        cameras=tuple((camera.name, camera.size) for camera in shown),
        resolution=view.resolution,
        resize="stretch",
        horizon_s=view.chunk_s,
        bodies=(
            BodyContract(
                embodiment=body,
                statistics=body,
                rate_hz=float(meta.fps),
                cameras=tuple(shown),
                state=_vector(meta, OBS_STATE),
                action=_vector(meta, ACTION, low, high),
                from_simulator="recording" in extra,
            ),
        ),
    )


def _vector(
    meta: LeRobotDatasetMetadata, key: str, low: Sequence[float] = (), high: Sequence[float] = ()
) -> VectorContract | None:
    if key not in meta.features:
        return None
    names = dimension_names(key, meta.features[key])
    measured = (meta.stats or {}).get(key, {})
    unknown = np.full(len(names), np.nan)
    told = {
        name: tuple(float(value) for value in np.asarray(measured.get(statistic, unknown)).reshape(-1))
        for name, statistic in (("mean", "mean"), ("std", "std"), ("low", "q01"), ("high", "q99"))
    }
    declared = len(low) == len(high) == len(names)
    bounds = tuple(zip(map(float, low), map(float, high), strict=True)) if declared else None
    return VectorContract(names=names, **told, bounds=bounds)
