"""Where objects were in a recording of a simulator's expert: its trials run again, with the actions that it executed.

A recording holds what a robot would know, and no object's pose. The simulator's physics repeats exactly, so the poses
come back when each episode's trial is reset and its actions are executed once more; the end effector's recorded
positions say whether it was the same episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wamkit.data.lerobot import LeRobotSource
from wamkit.envs.base import EnvError, Environment
from wamkit.envs.recording import TRIALS_PATH
from wamkit.envs.registry import ENV_TYPES, make_env
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.json_files import read_json_lines

EXECUTED = "action_executed"
AGREEMENT_M = 1e-3
"""How far the end effector may be from where it was recorded."""
_OPTIONS = ("max_steps", "seed", "gripper")
"""What of a recording's settings changes the physics, and not only the pictures."""


def recorded_objects(
    source: LeRobotSource, episodes: Sequence[int] | np.ndarray, rows: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The first object's position at some rows of a recording.

    Args:
        source: A recording that `wamkit.envs.recording.record_episodes` made.
        episodes: Episode of each row asked for, [n].
        rows: Its number within the episode, [n].

    Returns:
        Metres in the world's frame, float32 [n, 3].

    Raises:
        WorldMetricsError: The recording is of no simulator, of one that is not installed or names no objects, or its
            episodes do not come out as they were recorded.
    """
    episodes, rows = np.asarray(episodes), np.asarray(rows)
    trials, env_type, options = _trials(source)
    if EXECUTED not in source.features:
        raise WorldMetricsError(f"{source.root} does not say which actions were executed, so it cannot be run again.")
    found = np.zeros((len(episodes), 3), np.float32)
    env: Environment | None = None
    try:
        for episode in np.unique(episodes).tolist():
            task, trial = trials[episode]
            if env is None or env.description.task != task:
                if env is not None:
                    env.close()
                env = make_env(env_type, task, resolution=16, **options)
            here = episodes == episode
            path = _run_again(env, source, episode, trial, int(rows[here].max()) + 1)
            found[here] = path[rows[here]]
    except EnvError as error:
        raise WorldMetricsError(f"The recorded trials cannot be run again: {error}") from error
    finally:
        if env is not None:
            env.close()
    return found


def object_positions(
    source: LeRobotSource, episodes: Sequence[int] | np.ndarray, rows: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    """What a probe of the object's position looks for, see `wamkit.evaluation.imagine.imagine_report`.

    Args:
        source: See `recorded_objects`.
        episodes: See `recorded_objects`.
        rows: See `recorded_objects`.

    Returns:
        ``object`` [n, 3]; of several tasks also ``object_within_task``, the same less its task's mean: objects of
        different tasks stand at different places, so knowing the task alone explains part of ``object``.

    Raises:
        WorldMetricsError: See `recorded_objects`.
    """
    where = recorded_objects(source, episodes, rows)
    tasks = np.array([source.episodes[int(episode)].task for episode in episodes])
    if len(np.unique(tasks)) < 2:
        return {"object": where}
    within = where.copy()
    for task in np.unique(tasks):
        within[tasks == task] -= where[tasks == task].mean(axis=0)
    return {"object": where, "object_within_task": within}


def _trials(source: LeRobotSource) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """(task, trial) of each episode, the simulator, and its options."""
    made_by, _, what = str(source.extra.get("source", "")).partition(" ")
    log = source.root / TRIALS_PATH
    settings = source.extra.get("recording")
    if made_by not in ENV_TYPES or what != "expert" or not log.is_file() or not isinstance(settings, Mapping):
        raise WorldMetricsError(f"{source.root} is no recording of a simulator's expert: nobody knows its objects.")
    lines = read_json_lines(log, WorldMetricsError, "restore the file, or record again.", may_be_cut=True)
    trials = [(str(line["task"]), int(line["trial"])) for line in lines if line["success"]]
    if len(trials) != len(source.episodes):
        raise WorldMetricsError(
            f"{log} knows {len(trials)} episodes and the recording has {len(source.episodes)}: it was changed since."
        )
    return trials, made_by, {name: settings[name] for name in _OPTIONS if settings.get(name) is not None}


def _run_again(env: Environment, source: LeRobotSource, episode: int, trial: int, count: int) -> np.ndarray:
    """The first object's position at an episode's first rows, [count, 3]."""
    of_episode = source.episodes[episode].rows
    states = source.column("observation.state")[of_episode]
    executed = source.column(EXECUTED)[of_episode]
    env.reset_trial(trial, split="train", render=False)
    path = np.zeros((count, 3), np.float32)
    for row in range(count):
        now = env.observe(images=False)["observation.state"]
        apart = float(np.abs(np.asarray(now)[:3] - states[row][:3]).max())
        if not apart < AGREEMENT_M:
            raise WorldMetricsError(
                f"Episode {episode}, run again, is {1000 * apart:.1f} mm from its recording after {row} actions: the "
                "simulator's version is another, or the recording was changed."
            )
        objects = env.privileged_state().get("object_positions")
        if objects is None:
            raise WorldMetricsError(f"{env.description.name} does not tell where a task's object is.")
        path[row] = objects[0]
        if row + 1 < count:
            env.step_action(executed[row], render=False)
    return path
