"""Whether a swapped instruction is followed, on paths whose goal is known."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.evaluation.instruction_swap import instruction_swap, path_distance
from wamkit.evaluation.results import build_eval, validate_eval

GOALS = {"push": (0.1, 0.6, 0.0), "open": (0.3, 0.5, 0.2), "press": (-0.2, 0.7, 0.3)}


def episode(arm, task, trial, goes_to, **extra):
    rng = np.random.default_rng([trial, len(arm), len(task)])
    end = np.array(GOALS[goes_to]) + 0.02 * rng.normal(size=3)
    path = [[*(end * t / 5), 1.0] for t in range(6)]
    return {
        "arm": arm, "task": task, "trial": trial, "seed": 0, "success": goes_to == task, "steps": 10, "seconds": 1.0,
        "retries": 0, "path": path, **extra,
    }  # fmt: skip


def run(follows: bool):
    names = list(GOALS)
    own = [episode("policy", task, trial, task) for task in GOALS for trial in range(8)]
    swapped = []
    for index, task in enumerate(names):
        for trial in range(8):
            told = names[(index + 1 + trial % 2) % 3]
            goes = told if follows else task
            swapped.append(
                episode("swapped_instruction", task, trial, goes, told_task=told, told_instruction=f"do {told}")
            )
    return own + swapped


def test_a_follower_and_a_deaf_policy():
    result = instruction_swap(run(follows=True))
    assert result["followed"]["rate"] == 1.0
    assert result["control"]["rate"] == 0.0
    assert len(result["rows"]) == 6
    assert result["rows"][0] == {
        "scene": "open", "told_task": "press", "instruction": "do press", "n": 4, "successes": 0, "followed": 4,
    }  # fmt: skip
    deaf = instruction_swap(run(follows=False))
    assert deaf["followed"]["rate"] == 0.0
    assert sum(row["successes"] for row in deaf["rows"]) == 24


def test_without_paths_only_success_is_told():
    bare = [{key: value for key, value in e.items() if key != "path"} for e in run(follows=True)]
    result = instruction_swap(bare)
    assert "followed" not in result
    assert "followed" not in result["rows"][0]
    assert instruction_swap([e for e in bare if e["arm"] == "policy"]) is None


def test_eval_json_carries_it():
    result = build_eval(run(follows=True), {})
    assert validate_eval(result)["instruction_swap"]["followed"]["n"] == 24
    assert "instruction_swap" not in build_eval(run(follows=True)[:24], {})


def test_distance_holds_the_end_of_the_shorter_path():
    a, b = np.zeros((2, 3)), np.array([[0, 0, 0], [0, 0, 0], [0, 0, 3], [0, 0, 3.0]])
    assert path_distance(a, b) == pytest.approx(1.5)
    assert path_distance(b, a) == pytest.approx(1.5)
