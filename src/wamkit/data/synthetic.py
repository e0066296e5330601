"""A small real data set made of nothing: for tests, benchmarks and a first try.

A disc moves over a textured ground; state is its position and velocity, the action the velocity it gets next, so a
world model has something to predict and an action something to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wamkit.data.lerobot import LeRobotSource
from wamkit.data.recorder import LeRobotRecorder


def make_synthetic_dataset(
    root: Path | str,
    *,
    episodes: int = 3,
    length: int = 20,
    fps: int = 10,
    cameras: Sequence[str] = ("front",),
    resolution: tuple[int, int] = (64, 64),
    action_dim: int = 2,
    state_dim: int = 4,
    task: str | Sequence[str] = "push the disc",
    embodiment: str = "custom",
    seed: int = 0,
    resume: bool = False,
    video_rate_hz: float | None = None,
) -> LeRobotSource:
    """Records a small LeRobotDataset v3 through the real recorder.

    Args:
        root: Where; must not exist unless ``resume``.
        episodes: How many.
        length: Rows of each.
        fps: Rows per second.
        cameras: Names; each sees the scene with its own ground.
        resolution: (height, width), even numbers.
        action_dim: 0 = an action-free data set.
        state_dim: 0 = no state.
        task: One instruction for all, or one for each episode (cyclic); ``""`` = none.
        embodiment: A known name.
        seed: The whole content follows from it.
        resume: Append to what is there.
        video_rate_hz: Repeat frames so that new ones come at this rate (``fps`` must be a multiple of it).

    Returns:
        The data set, opened. Odd episodes are stored with success False.
    """
    tasks = [task] if isinstance(task, str) else list(task)
    repeat = 1 if video_rate_hz is None else round(fps / video_rate_hz)
    rng = np.random.default_rng(seed)
    grounds = {camera: _ground(rng, resolution) for camera in cameras}
    with LeRobotRecorder(
        root,
        fps,
        dict.fromkeys(cameras, resolution),
        [f"state_{index}" for index in range(state_dim)],
        [f"action_{index}" for index in range(action_dim)],
        embodiment,
        resume=resume,
        video_rate_hz=video_rate_hz,
    ) as recorder:
        for episode in range(recorder.episodes, recorder.episodes + episodes):
            position, velocity = rng.uniform(0.3, 0.7, 2), rng.normal(0.0, 0.02, 2)
            for row in range(length):
                command = np.clip(0.9 * velocity + rng.normal(0.0, 0.01, 2), -0.05, 0.05)
                if row % repeat == 0:
                    images = {camera: _disc(ground, position) for camera, ground in grounds.items()}
                recorder.add_frame(
                    images,
                    np.resize(np.concatenate([position, velocity]), state_dim) if state_dim else None,
                    np.resize(command, action_dim) if action_dim else None,
                    tasks[episode % len(tasks)],
                )
                velocity = np.where((position + command < 0.1) | (position + command > 0.9), -command, command)
                position = position + velocity
            recorder.save_episode(success=episode % 2 == 0)
    return LeRobotSource(root)


def _ground(rng: np.random.Generator, resolution: tuple[int, int]) -> np.ndarray:
    height, width = resolution
    y, x = np.mgrid[:height, :width] / max(resolution)
    waves = rng.uniform(2.0, 6.0, (3, 2))
    phases = rng.uniform(0.0, 2 * np.pi, 3)
    channels = [110 + 50 * np.sin(2 * np.pi * (a * x + b * y) + p) for (a, b), p in zip(waves, phases, strict=True)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _disc(ground: np.ndarray, position: np.ndarray) -> np.ndarray:
    height, width = ground.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = (x - position[0] * width) ** 2 + (y - position[1] * height) ** 2 < (0.12 * min(height, width)) ** 2
    image = ground.copy()
    image[inside] = (230, 60, 40)
    return image
