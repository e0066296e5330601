"""Verbs that do what they say, at toy size: benchmarks whose last line is read by others, a conversion, a recording."""

from __future__ import annotations

import json

import pytest

from wamkit.cli import main


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_loaders_last_line_is_json_and_has_the_ratio(benchmark, capfd):
    benchmark("loader").main(["--toy", "--json"])
    said = capfd.readouterr().out.strip().splitlines()
    result = json.loads(said[-1])
    assert len(said) > 4, "people are told more than the JSON"
    assert result["toy"] is True
    assert [name for name, _ in result["blocks"]] == 2 * ["lerobot", "ours", "ours", "lerobot"]
    assert all(rate > 0 for _, rate in result["blocks"])
    assert result["ratio"] == pytest.approx(sum(sorted(result["ratios"])[1:3]) / 2)
    assert result["largest_difference"]["frames"] <= 1.01
    assert result["first_epoch"]["frame_store_build_s"] > 0
    assert result["provenance"]["versions"]["lerobot"]


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("rendering")
def test_bench_measures_rendering_alone_and_by_processes(capfd):
    assert main(["bench", "render", "--toy", "--json"]) == 0
    result = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    (row,) = result["tasks"].values()
    assert result["frames_per_s"] == row["frames_per_s"] > 0
    assert row["machine_frames_per_s"] > 0
    assert row["steps_per_s"] > 0
    assert result["resolution"] == 32


def test_bench_hands_on_how_a_benchmark_ended(capfd):
    assert main(["bench", "render", "--no_such_flag"]) == 2
    assert "--no_such_flag" in capfd.readouterr().err


@pytest.mark.sim
@pytest.mark.usefixtures("rendering")
def test_the_issues_own_line_records_into_a_folder_that_it_names(tmp_path, monkeypatch, capsys):
    from wamkit.data.lerobot import LeRobotSource

    monkeypatch.chdir(tmp_path)
    line = "record --env.type metaworld --env.task button-press-topdown-v3 --episodes 25"
    toy = ["--env.resolution", "16", "--video_rate_hz", "10", "--workers", "0"]
    assert main([*line.replace("25", "1").split(), *toy]) == 0
    assert "1 episodes" in (said := capsys.readouterr().out)
    assert "data/metaworld_button-press-topdown-v3" in said
    assert len(LeRobotSource(tmp_path / "data/metaworld_button-press-topdown-v3").episodes) == 1
    # A second recording must not go into the first.
    assert main([*line.split(), *toy]) == 1
    assert "data/metaworld_button-press-topdown-v3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "folder"),
    [
        ("reach-v3", "data/metaworld_reach-v3"),
        ("reach-v3, push-v3", "data/metaworld_reach-v3+push-v3"),
        ("a,b,c,d,e", "data/metaworld_a_and_4_more"),
    ],
)
def test_a_recording_without_a_folder_is_named_after_its_tasks(tasks, folder):
    from wamkit.cli.groups import EnvFlags
    from wamkit.cli.record import default_folder

    assert default_folder(EnvFlags(task=tasks)).as_posix() == folder


def test_the_usual_arms_are_run_and_an_expert_that_there_is_not_is_named(monkeypatch):
    from wamkit.cli.evaluate import wanted_arms
    from wamkit.envs import registry

    assert wanted_arms("", "metaworld", ("reach-v3",)) == (("policy", "no_op", "random", "expert", "blind"), "")
    assert wanted_arms("blind, policy", "metaworld", ("reach-v3",)) == (("blind", "policy"), "")
    monkeypatch.setattr(registry, "has_expert", lambda env_type, task: task == "libero_goal_1")
    arms, left_out = wanted_arms("", "libero", tuple(f"libero_goal_{number}" for number in range(6)))
    assert arms == ("policy", "no_op", "random", "blind")
    assert left_out == "No expert was run: libero has none for libero_goal_0, libero_goal_2, libero_goal_3 and 2 more."
