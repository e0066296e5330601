"""Groups of flags that several verbs share, under LeRobot's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError


@dataclass(frozen=True)
class PolicyFlags:
    """Which policy."""

    path: Path
    """Folder of a checkpoint (.../pretrained_model), or a run's output folder: its last checkpoint."""


@dataclass(frozen=True)
class UsedPolicyFlags(PolicyFlags):
    """Which policy, and how its weights are used."""

    settings: tuple[str, ...] = ()
    """NAME=VALUE of each inference setting that is not to be the checkpoint's, such as mode=action_only."""

    def inference_settings(self) -> dict[str, Any]:
        """Names to values.

        Raises:
            PolicyError: One is not of the form NAME=VALUE.
        """
        from wamkit.inference.settings import parse_settings

        return parse_settings(self.settings)


@dataclass(frozen=True)
class ActingPolicyFlags(UsedPolicyFlags):
    """Which policy, and as which robot it acts."""

    embodiment: str | None = None
    """Which robot, where the policy was trained on several."""
    rate_hz: float | None = None
    """Which control rate, where it was trained on several."""


@dataclass(frozen=True)
class DatasetFlags:
    """Which recordings."""

    root: Path
    """Folder of a LeRobot data set."""


@dataclass(frozen=True)
class OptionalDatasetFlags:
    """Which recordings, where that is one of several choices."""

    root: Path | None = None
    """Folder of a LeRobot data set."""


@dataclass(frozen=True)
class EnvFlags:
    """Which simulated world."""

    type: str = "metaworld"
    """Name of the simulator."""
    task: str = ""
    """One task, or several separated by commas."""
    cameras: str = ""
    """Cameras separated by commas; by default the simulator's usual one."""
    resolution: int | None = None
    """Pixels of a side at which cameras are rendered; by default what the policy was trained on, else 128."""
    gripper: str = ""
    """LIBERO: what the policy's gripper numbers mean: open_-1_close_1 (its own), open_0_close_1 or close_0_open_1."""


@dataclass(frozen=True)
class OptionalEnvFlags:
    """Which simulated world, where that is one of several choices."""

    type: str | None = None
    """Name of the simulator."""
    task: str = ""
    """One task, or several separated by commas."""


def names(text: str) -> tuple[str, ...]:
    """``"a, b"`` -> ``("a", "b")``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def task_list(tasks: str, env_type: str = "metaworld") -> tuple[str, ...]:
    """The named tasks, at least one; a suite's name stands for its tasks.

    Raises:
        WamkitError: No task was named, or there is no such environment type.
    """
    if not names(tasks):
        raise WamkitError("no task: name one or several with --env.task NAME[,NAME...].")
    from wamkit.envs.registry import expand_tasks

    return expand_tasks(env_type, names(tasks))
