"""Recordings for the tests of windows: real ones made once, and one whose frames show their row's number."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import Episode, LeRobotSource
from wamkit.data.synthetic import make_synthetic_dataset

torch.set_num_threads(1)


@dataclass
class NumberedSource:
    """A recording without files: the frame of row r of episode e is filled with 10 e + r, as are state and action."""

    lengths: tuple[int, ...] = (12, 9)
    fps: float = 10.0
    video_rate_hz: float = 10.0
    cameras: tuple[str, ...] = ("front",)
    embodiment: str = "custom"
    state_dim: int = 2
    action_dim: int = 3
    tasks: tuple[str, ...] = ("push", "")
    absent: dict[int, tuple[str, ...]] = field(default_factory=dict)
    size: tuple[int, int] = (4, 6)
    root: Path = Path("numbered")
    decoded: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self):
        starts = np.concatenate([[0], np.cumsum(self.lengths)]).tolist()
        self.episodes = tuple(
            Episode(e, length, self.tasks[e % len(self.tasks)], starts[e], None, self.absent.get(e, ()))
            for e, length in enumerate(self.lengths)
        )
        self.state_names = tuple(f"s{i}" for i in range(self.state_dim)) or None
        self.action_names = tuple(f"a{i}" for i in range(self.action_dim)) or None
        numbers = np.concatenate([10 * e + np.arange(length) for e, length in enumerate(self.lengths)])
        self.columns = {
            "observation.state": (numbers[:, None] + np.arange(self.state_dim) / 10).astype(np.float32),
            "action": (numbers[:, None] + np.arange(self.action_dim) / 10).astype(np.float32),
        }

    def column(self, name):
        return self.columns[name]

    def resolution(self, camera):
        return self.size

    def iterate(self, camera, episode, timestamps):
        self.decoded.append((camera, episode))
        offset = 100 * self.cameras.index(camera)
        for time in timestamps.tolist():
            row = round(time * self.fps)
            yield row / self.fps, np.full((*self.size, 3), 10 * episode + row + offset, np.uint8)

    def fingerprint(self):
        return repr((self.lengths, self.fps, self.video_rate_hz, self.cameras))


@pytest.fixture
def numbered():
    """The class: ``numbered(lengths=..., fps=...)``."""
    return NumberedSource


@pytest.fixture
def store(tmp_path):
    """Builds a frame store at the recording's own size: ``store(source)``."""

    def build(source, **settings):
        return FrameStore.build(source, tmp_path / "cache", **({"resolution": (4, 6)} | settings))

    return build


@pytest.fixture(scope="session")
def arm(tmp_path_factory) -> LeRobotSource:
    """Three episodes of 24 rows at 20 Hz, one camera of 64 px."""
    return make_synthetic_dataset(tmp_path_factory.mktemp("arm") / "data", length=24, fps=20, embodiment="metaworld")


@pytest.fixture(scope="session")
def slow_video(tmp_path_factory) -> LeRobotSource:
    """Two episodes of 20 rows at 15 Hz with new frames at 5 Hz, two cameras, other dimensions."""
    return make_synthetic_dataset(
        tmp_path_factory.mktemp("slow") / "data",
        episodes=2,
        fps=15,
        video_rate_hz=5.0,
        cameras=("exterior", "wrist"),
        resolution=(48, 64),
        action_dim=7,
        state_dim=5,
        embodiment="droid",
        task=("", "lift the lid"),
    )
