"""LIBERO's suites and tasks under short names: ``libero_object_3`` is the task of number 3 of ``libero_object``.

A suite's own name stands for all of its tasks, as in LeRobot's ``--env.task=libero_object``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wamkit.envs.base import EnvError
from wamkit.envs.libero_assets import package_folder, task_names
from wamkit.errors import suggest

SUITES: dict[str, tuple[int, int]] = {
    "libero_spatial": (10, 280),
    "libero_object": (10, 280),
    "libero_goal": (10, 300),
    "libero_10": (10, 520),
    "libero_90": (90, 400),
}
"""Suite -> (number of tasks, steps after which an episode has failed). ``libero_100`` has no initial states."""

EVAL_TRIALS = 50
"""Fixed initial states of each task, which LIBERO gives; success is counted on these."""

TASKS: tuple[str, ...] = tuple(f"{suite}_{number}" for suite, (count, _) in SUITES.items() for number in range(count))
"""Every task's short name."""


@dataclass(frozen=True)
class LiberoTask:
    """One task of one suite."""

    suite: str
    number: int
    name: str
    """LIBERO's own name, which is also its file's."""
    instruction: str
    bddl_file: Path
    """Scene and goal."""
    max_steps: int


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Tasks, with each suite's name replaced by its tasks."""
    expanded: list[str] = []
    for name in names:
        expanded += [f"{name}_{number}" for number in range(SUITES[name][0])] if name in SUITES else [name]
    return tuple(expanded)


def find_task(task: str) -> LiberoTask:
    """What a short name stands for.

    Args:
        task: One of ``TASKS``.

    Raises:
        EnvError: There is no such task, or LIBERO is not installed.
    """
    if task not in TASKS:
        raise EnvError(f"LIBERO has no task {task!r}.{suggest(task, (*TASKS, *SUITES))}")
    suite, _, number = task.rpartition("_")
    names = task_names().get(suite, ())
    if len(names) != SUITES[suite][0]:
        raise EnvError(f"The installed LIBERO has {len(names)} tasks in {suite}: install hf-libero 0.1.4.")
    name = names[int(number)]
    return LiberoTask(
        suite=suite,
        number=int(number),
        name=name,
        instruction=instruction_of(name),
        bddl_file=package_folder() / "bddl_files" / suite / f"{name}.bddl",
        max_steps=SUITES[suite][1],
    )


def goal_of(bddl_file: Path) -> list[list[str]]:
    """A task's goal as LIBERO's own parser gives it, such as ``[["in", "ketchup_1", "basket_1_contain_region"]]``."""
    _, _, goal = bddl_file.read_text().lower().partition("(:goal")
    return [condition.split() for condition in re.findall(r"\(([^()]*)\)", goal)]


def has_expert(task: str) -> bool:
    """Whether the scripted expert can try a task: one object into or onto another.

    Args:
        task: One of ``TASKS``.

    Raises:
        EnvError: See `find_task`.
    """
    from wamkit.envs.libero_expert import expert_for

    goal = goal_of(find_task(task).bddl_file)
    try:
        expert_for(goal)
    except EnvError:
        return False
    return True


def instruction_of(name: str) -> str:
    """The sentence in a task's name, without its scene: what LIBERO's data sets and LeRobot tell a policy."""
    words = name.split("_")
    scene = next((index for index, word in enumerate(words) if word.startswith("SCENE")), -1)
    return " ".join(words[scene + 1 :])
