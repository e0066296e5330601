"""Environments by name: what ``--env.type`` and ``--env.task`` may say."""

from __future__ import annotations

from typing import Any

from wamkit.envs.base import EnvError, Environment
from wamkit.errors import suggest

ENV_TYPES: tuple[str, ...] = ("metaworld", "libero")


def _checked_type(env_type: str) -> None:
    if env_type not in ENV_TYPES:
        raise EnvError(f"There is no environment type {env_type!r}.{suggest(env_type, ENV_TYPES)}")


def tasks(env_type: str) -> tuple[str, ...]:
    """The tasks of a simulator, without importing it.

    Raises:
        EnvError: There is no such environment type.
    """
    _checked_type(env_type)
    if env_type == "libero":
        from wamkit.envs.libero_tasks import TASKS

        return TASKS
    from wamkit.envs.metaworld_tasks import INSTRUCTIONS

    return tuple(INSTRUCTIONS)


def expand_tasks(env_type: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of tasks, where a suite's name (``libero_object``) stands for all of its tasks.

    Raises:
        EnvError: There is no such environment type.
    """
    _checked_type(env_type)
    if env_type == "libero":
        from wamkit.envs.libero_tasks import expand

        return expand(names)
    return names


def instruction(env_type: str, task: str) -> str:
    """The sentence that tells a policy to do this task.

    Raises:
        EnvError: There is no such environment type or task, or the simulator that knows the sentence is absent.
    """
    if task not in tasks(env_type):
        raise EnvError(f"{env_type} has no task {task!r}.{suggest(task, tasks(env_type))}")
    if env_type == "libero":
        from wamkit.envs.libero_tasks import find_task

        return find_task(task).instruction
    from wamkit.envs.metaworld_tasks import INSTRUCTIONS

    return INSTRUCTIONS[task]


def has_expert(env_type: str, task: str) -> bool:
    """Whether the simulator brings an expert that can try a task.

    Raises:
        EnvError: There is no such environment type or task, or the simulator that knows is absent.
    """
    if task not in tasks(env_type):
        raise EnvError(f"{env_type} has no task {task!r}.{suggest(task, tasks(env_type))}")
    if env_type == "libero":
        from wamkit.envs import libero_tasks

        return libero_tasks.has_expert(task)
    return True  # MetaWorld has a policy for each of its tasks


def make_env(
    env_type: str,
    task: str,
    *,
    resolution: int | tuple[int, int] = 128,
    cameras: tuple[str, ...] | None = None,
    max_steps: int | None = None,
    **options: Any,
) -> Environment:
    """Make one environment.

    Args:
        env_type: One of ``ENV_TYPES``.
        task: One of :func:`tasks`.
        resolution: Side of the square pictures, or (height, width); really rendered at this size.
        cameras: The simulator's names; None for the simulator's default.
        max_steps: Time limit in steps; None for the simulator's default.
        **options: What the adapter takes besides.

    Raises:
        EnvError: An unknown type, task or camera, with the nearest that exists.
    """
    instruction(env_type, task)
    optional = {name: value for name, value in (("cameras", cameras), ("max_steps", max_steps)) if value is not None}
    if env_type == "libero":
        from wamkit.envs.libero import LiberoEnvironment

        return LiberoEnvironment(task, resolution=resolution, **optional, **options)
    if "gripper" in options:
        raise EnvError(f"{env_type} has one meaning of the gripper's numbers: leave --env.gripper out.")
    from wamkit.envs.metaworld import MetaWorldEnvironment

    return MetaWorldEnvironment(task, resolution=resolution, **optional, **options)
