"""LaWM across robots, rates and action-free video: encoder and latent-action model on imported real recordings."""

from __future__ import annotations

import dataclasses

from wamkit.data.windows import WindowSpec
from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.recipes._stage import stage
from wamkit.training.config import DatasetConfig, TrainConfig

CAMERA = "primary"
"""The model's one view."""

PRIMARY_VIEWS: dict[str, str] = {
    "droid": "exterior_image_1_left",
    "rt1": "image",
    "bridge": "image_0",
    "unitree_g1": "cam_high",
    "droid_action_free": "exterior_image_1_left",
}
"""Recording -> its camera that is the model's view; the order of the roots."""

HORIZON_S = 1.2
"""LaWAM C.5: 1.2 s in robots' recordings, 0.4 s in video of people."""

HORIZONS_S = (("rt1", 4 / 3), ("human", 0.4))
"""RT-1 has a frame every third of a second, so its horizon is the nearest that it really recorded."""


def recordings_model(name: str = "tiny") -> LaWAMConfig:
    """A preset with the primary view as its camera and the horizon of robots' recordings."""
    return dataclasses.replace(preset(name), cameras=(CAMERA,), horizon_s=HORIZON_S)


def lawam_recordings() -> TrainConfig:
    """DROID (video 5 Hz, rows 15 Hz), RT-1 (3 Hz), Bridge (5 Hz), Unitree G1 (30 Hz) and DROID without actions.

    Import each first, into the folders named in ``dataset.roots``: ``wam import recordings/droid --output_dir
    data/droid`` and so on; the action-free one with ``--embodiment droid``, since it shows that robot. Each recording
    is drawn as often as any other, however long it is.
    """
    # The horizon is a true one: a frame repeated at an episode's end would teach that nothing moves.
    horizon = WindowSpec(
        frame_offsets_s=(0.0, HORIZON_S),
        last_offset_by_embodiment=HORIZONS_S,
        cameras=(CAMERA,),
        feature_views=2,
        past_end="drop",
    )
    return TrainConfig(
        name="lawam_recordings",
        model="lawam",
        preset="tiny",
        model_config=recordings_model(),
        dataset=DatasetConfig(
            roots=tuple(f"data/{name}" for name in PRIMARY_VIEWS),
            cameras=tuple(((CAMERA, camera),) for camera in PRIMARY_VIEWS.values()),
            weights=(1.0,) * len(PRIMARY_VIEWS),
        ),
        stages=(
            stage("encoder", WindowSpec(cameras=(CAMERA,)), 500, 64, warmup_steps=50),
            stage("latent_action", horizon, 500, 32, warmup_steps=50, optimizer="muon"),
        ),
        save_every=500,
        output_dir="outputs/lawam_recordings",
    )
