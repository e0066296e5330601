"""eval.json: what it holds, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest

from wamkit.evaluation.results import ResultsError, build_eval, load_eval, validate_eval, write_eval, write_json


def run(arm: str, successes: int, n: int = 10, tasks=("push", "reach"), seeds=(0,)):
    return [
        {
            "arm": arm,
            "task": task,
            "trial": trial,
            "seed": seed,
            "success": trial < successes,
            "steps": 50,
            "seconds": 1.5,
            "retries": 0,
        }
        for seed in seeds
        for task in tasks
        for trial in range(n)
    ]


@pytest.fixture
def result():
    episodes = run("policy", 9) + run("no_op", 0) + run("expert", 10) + run("blind", 4)
    return build_eval(episodes, {"seeds": [0]}, latency={"total": {"p50_ms": 12.0}})


def test_arms_and_comparisons(result):
    assert list(result["arms"]) == ["policy", "no_op", "expert", "blind"]
    policy = result["arms"]["policy"]
    assert policy["overall"]["successes"] == 18
    assert policy["overall"]["n"] == 20
    assert policy["tasks"]["push"]["rate"] == 0.9
    assert "seeds" not in policy
    overall = [c for c in result["comparisons"] if c["task"] is None]
    assert [(c["arm"], c["baseline"]) for c in overall] == [("policy", "no_op"), ("policy", "blind")]
    assert overall[1]["only_arm"] == 10
    assert overall[1]["only_baseline"] == 0
    assert overall[1]["p_holm"] >= overall[1]["p_value"]
    assert {c["task"] for c in result["comparisons"]} == {None, "push", "reach"}
    assert result["latency"]["total"]["p50_ms"] == 12.0


def test_several_seeds_are_told_apart():
    arm = build_eval(run("policy", 3, seeds=(0, 1, 2)), {})["arms"]["policy"]
    assert list(arm["seeds"]) == ["0", "1", "2"]
    assert arm["overall"]["n"] == 60


def test_round_trip_and_nothing_left_behind(result, tmp_path):
    path = write_eval(tmp_path / "deep" / "eval.json", result)
    assert load_eval(path) == json.loads(json.dumps(result))
    with pytest.raises(ResultsError):
        write_eval(path, result | {"latency": {"p50_ms": float("nan")}})
    assert load_eval(path)["latency"] == result["latency"]
    assert [file.name for file in path.parent.iterdir()] == ["eval.json"]


def test_layout_keeps_paths_on_one_line(tmp_path):
    path = [[0.123, 0.456, 0.789, 1.0]] * 40
    value = {"episodes": [{"arm": "policy", "path": path, "text": "x" * 120}], "rates": {"a": [1, 2]}, "odd": {1: ()}}
    text = write_json(tmp_path / "v.json", value).read_text()
    assert json.loads(text) == json.loads(json.dumps(value))
    assert len(text.splitlines()) == 11


def test_tampering_is_seen(result):
    forged = copy.deepcopy(result)
    forged["arms"]["policy"]["overall"]["successes"] = 20
    with pytest.raises(ResultsError, match="its episodes say"):
        validate_eval(forged)
    forged = copy.deepcopy(result)
    forged["arms"]["policy"]["tasks"]["push"]["ci95"] = [0.0, 1.0]
    with pytest.raises(ResultsError, match="does not follow"):
        validate_eval(forged)
    forged = copy.deepcopy(result)
    del forged["arms"]["blind"]
    with pytest.raises(ResultsError, match="arms"):
        validate_eval(forged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": 1}, "success = 1"),
        ({"trial": True}, "trial = True"),
        ({"seconds": "1"}, "int or float"),
        ({"seconds": float("inf")}, r"episodes\[0\].seconds is inf"),
    ],
)
def test_broken_episodes_are_named(change, message):
    episodes = run("policy", 1)
    episodes[0] |= change
    with pytest.raises(ResultsError, match=message):
        build_eval(episodes, {})


def test_missing_field_no_episodes_unknown_arm():
    episodes = run("policy", 1)
    del episodes[3]["retries"]
    with pytest.raises(ResultsError, match="Episode 3 lacks 'retries'"):
        build_eval(episodes, {})
    with pytest.raises(ResultsError, match="no episodes"):
        build_eval([], {})
    with pytest.raises(ResultsError, match="Did you mean 'policy'"):
        build_eval(run("policy", 1) + run("blind", 1), {}, comparisons=[("polcy", "blind")])


def test_arms_on_other_trials_are_shown_but_not_compared():
    result = build_eval(run("policy", 1) + run("swapped", 1, tasks=("open",)), {})
    assert result["comparisons"] == []
    assert set(result["arms"]) == {"policy", "swapped"}


def test_load_errors_say_what_to_do(tmp_path):
    with pytest.raises(ResultsError, match="wam eval"):
        load_eval(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ResultsError, match=r"bad.json cannot be read .*: delete it"):
        load_eval(tmp_path / "bad.json")
    with pytest.raises(ResultsError, match="a list"):
        load_eval(write_json(tmp_path / "list.json", []))
