"""Environments by name: what ``--env.type`` and ``--env.task`` may say."""

from __future__ import annotations

from typing import Any

from wamkit.envs.base import EnvError, Environment
from wamkit.errors import suggest

ENV_TYPES: tuple[str, ...] = ("metaworld",)


def _checked_type(env_type: str) -> None:
    if env_type not in ENV_TYPES:
        raise EnvError(f"There is no environment type {env_type!r}.{suggest(env_type, ENV_TYPES)}")


def tasks(env_type: str) -> tuple[str, ...]:
    """The tasks of a simulator, without importing it.

    Raises:
        EnvError: There is no such environment type.
    """
    _checked_type(env_type)
    from wamkit.envs.metaworld_tasks import INSTRUCTIONS

    return tuple(INSTRUCTIONS)


def instruction(env_type: str, task: str) -> str:
    """The sentence that tells a policy to do this task.

    Raises:
        EnvError: There is no such environment type or task.
    """
    if task not in tasks(env_type):
        raise EnvError(f"{env_type} has no task {task!r}.{suggest(task, tasks(env_type))}")
    from wamkit.envs.metaworld_tasks import INSTRUCTIONS

    return INSTRUCTIONS[task]


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
    from wamkit.envs.metaworld import MetaWorldEnvironment

    optional = {name: value for name, value in (("cameras", cameras), ("max_steps", max_steps)) if value is not None}
    return MetaWorldEnvironment(task, resolution=resolution, **optional, **options)
