"""Whether a policy that is told another task's instruction goes where that instruction leads.

A scene holds the objects of its own task only, so the task it is told cannot succeed there. What shows is the path
of the end effector: it is compared with the paths that the same policy takes under its own instructions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wamkit.evaluation.statistics import success_rate

POSITION = slice(0, 3)
"""The end effector's position in an episode's ``path``."""


def path_distance(a: Float[np.ndarray, "t 3"], b: Float[np.ndarray, "u 3"]) -> float:
    """Mean distance of two paths of equal sampling; the shorter one stays where it ended."""
    length = max(len(a), len(b))
    held = [path[np.minimum(np.arange(length), len(path) - 1)] for path in (a, b)]
    return float(np.linalg.norm(held[0] - held[1], axis=1).mean())


def instruction_swap(
    episodes: Sequence[Mapping[str, Any]], *, arm: str = "swapped_instruction", main: str = "policy"
) -> dict[str, Any] | None:
    """What swapping the instruction does: the scene's own task, and the path of the end effector.

    A swapped episode *follows* if its path is, in the median over trials, nearer to the main arm's paths on the
    task it was told than to those on the task of its scene. ``control`` is the same share for the main arm's own
    episodes, told nothing else, and judged against the same other task. An episode is never compared with its own
    (task, trial).

    Args:
        episodes: All episodes; those of ``arm`` say ``told_task`` (and ``told_instruction``).
        arm: The arm under another task's instruction.
        main: The same policy under its own.

    Returns:
        ``rows`` by scene and told task (``scene``, ``told_task``, ``instruction``, ``n``, ``successes`` on the scene's
        task, and ``followed`` where paths were recorded), and over all of them ``followed`` and ``control`` (rates
        with intervals). None where no episode says what it was told.
    """
    swapped = [e for e in episodes if e["arm"] == arm and e.get("told_task")]
    if not swapped:
        return None
    paths: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for episode in episodes:
        if episode["arm"] == main and episode.get("path"):
            paths[episode["task"]].append((episode["trial"], _positions(episode)))

    def nearness(path: np.ndarray, task: str, trial: int) -> float | None:
        others = [path_distance(path, other) for index, other in paths.get(task, []) if index != trial]
        return float(np.median(others)) if others else None

    def follows(episode: Mapping[str, Any], told: str) -> bool | None:
        if not episode.get("path"):
            return None
        path = _positions(episode)
        to_told, to_scene = (nearness(path, task, episode["trial"]) for task in (told, episode["task"]))
        return None if to_told is None or to_scene is None else to_told < to_scene

    own = {(e["task"], e["trial"], e["seed"]): e for e in episodes if e["arm"] == main}
    groups: dict[tuple[str, str], list[tuple[Mapping[str, Any], bool | None]]] = defaultdict(list)
    followed, control = [], []
    for episode in swapped:
        told = episode["told_task"]
        verdict = follows(episode, told)
        groups[episode["task"], told].append((episode, verdict))
        if verdict is not None:
            followed.append(verdict)
        partner = own.get((episode["task"], episode["trial"], episode["seed"]))
        if partner is not None and (base := follows(partner, told)) is not None:
            control.append(base)
    rows = []
    for (scene, told), members in sorted(groups.items()):
        row: dict[str, Any] = {
            "scene": scene,
            "told_task": told,
            "instruction": members[0][0].get("told_instruction", told),
            "n": len(members),
            "successes": sum(bool(episode["success"]) for episode, _ in members),
        }
        judged = [verdict for _, verdict in members if verdict is not None]
        rows.append(row | ({"followed": sum(judged)} if len(judged) == len(members) else {}))
    result: dict[str, Any] = {"rows": rows}
    if followed and control:
        result |= {"followed": success_rate(followed).to_json(), "control": success_rate(control).to_json()}
    return result


def _positions(episode: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(episode["path"], dtype=np.float64)[:, POSITION]
