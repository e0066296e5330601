"""``wam calibrate``, and what ``wam eval`` and ``wam serve`` make of its file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

# Worker processes must find the fake world too: they inherit this path.
sys.path.insert(0, str(Path(__file__).parent / "evaluation"))
from fake_world import FakeFactory
from micro_policy import micro_policy, save

import wamkit.evaluation.rollout  # noqa: F401  # before the factory that it knows is replaced
from wamkit.cli import main
from wamkit.evaluation.provenance import checkpoint_record
from wamkit.evaluation.watched_arm import surprises_of
from wamkit.inference.monitor_calibration import Calibration, Scale

TASKS = "line-a,line-b"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a policy that moves the fake world's point about."""
    return save(micro_policy(10.0, scale=0.05, action_dim=1), tmp_path_factory.mktemp("policy") / "pretrained_model")


@pytest.fixture
def fake_world(monkeypatch):
    """In place of a simulator: every second trial succeeds, after three chunks."""
    factory = FakeFactory(max_steps=14, solved_after=13, solved_every=2)
    monkeypatch.setattr("wamkit.evaluation.workers.EnvFactory", lambda kind, options: factory)
    monkeypatch.setattr("wamkit.envs.registry.expand_tasks", lambda kind, tasks: tuple(tasks))
    monkeypatch.setattr("wamkit.envs.registry.instruction", lambda kind, task: f"go along {task}")
    monkeypatch.setattr("wamkit.cli.check.refuse_misfit", lambda *_: None)


def flags(verb: str, checkpoint: Path, output_dir: Path, *more: str) -> list[str]:
    named = ["--policy.path", str(checkpoint), "--env.task", TASKS, "--output_dir", str(output_dir)]
    prefix = "--eval." if verb == "eval" else "--"
    return [verb, *named, "--device", "cpu", f"{prefix}workers", "1", f"{prefix}batch_size", "4", *more]


def test_the_road_from_a_policy_to_its_alarms(tmp_path, checkpoint, fake_world, capsys):
    """Too few successes are refused with what to do; that done, the file is there, and wam eval watches with it."""
    out, rate = tmp_path / "calibration", ("--false_alarm_rate", "0.25")
    file = out / "calibration.json"

    def calibrate(*more: str) -> str:
        status = main(flags("calibrate", checkpoint, out, *rate, *more))
        said = capsys.readouterr()
        assert (status == 0) is file.exists()
        return said.out + said.err

    said = calibrate("--n_episodes", "2")
    assert "2 of 4 episodes succeeded: a false-alarm rate of 0.25 needs 4 successful episodes" in said
    assert "--resume and a larger --n_episodes" in said
    assert "go on with --resume" in calibrate("--n_episodes", "3")
    said = calibrate("--n_episodes", "3", "--resume")
    assert "4 of 6 episodes succeeded" in said
    assert "at most 25 % of successful episodes raise an alarm (from 3 episodes, and 1 others for the scale)" in said

    calibration = Calibration.load(file)
    assert calibration.checkpoint == checkpoint_record(checkpoint)["sha256"]
    assert (calibration.false_alarm_rate, calibration.episodes) == (0.25, 3)
    assert calibration.made["successful_by_task"] == {"line-a": 2, "line-b": 2}
    assert calibration.made["trials"] == [100_000, 100_002]
    noted = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()[1:]]
    assert {len(episode["surprises"]) for episode in noted} == {3}
    # The greatest of three, as the rate asks: every successful episode stays at or below it.
    values = [max(calibration.scale.value(s) for s in surprises_of(e)) for e in noted if e["success"]]
    assert sum(value <= calibration.threshold for value in values) >= 3
    assert calibration.threshold in values

    evaluated = tmp_path / "eval"
    watch = ("--calibration", str(file), "--eval.arms", "policy", "--eval.n_episodes", "2", "--eval.videos", "0")
    assert main(flags("eval", checkpoint, evaluated, *watch)) == 0
    said, result = capsys.readouterr().out, json.loads((evaluated / "eval.json").read_text())
    assert "alarms in " in said
    assert result["monitor"]["threshold"] == calibration.threshold
    assert (result["monitor"]["successful"]["n"], result["monitor"]["failed"]["n"]) == (2, 2)
    assert all(isinstance(episode["alarms_s"], list) for episode in result["episodes"])


def test_a_calibration_of_another_checkpoint_or_pace_is_refused(tmp_path, checkpoint, fake_world, capsys):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "trained_on.txt").write_text("another run")
    file = tmp_path / "calibration.json"
    digest = checkpoint_record(checkpoint)["sha256"]
    scale = Scale("copy_present", {"400": 1.0})
    Calibration(scale, 1.0, 0.25, 1, 3, checkpoint=digest, made={"n_action_steps": None}).save(file)
    watch = ("--calibration", str(file))
    only = (*watch, "--eval.arms", "policy")

    def refused(arguments: list[str]) -> str:
        assert main(arguments) == 1
        return capsys.readouterr().err

    said = f"is of checkpoint {digest[:12]} and this one is "
    assert said in refused(flags("eval", other, tmp_path / "e", *only))
    assert said in refused(["serve", "--policy.path", str(other), "--port", "0", "--monitor", *watch])
    assert "--n_action_steps None" in refused(
        flags("eval", checkpoint, tmp_path / "e", *only, "--eval.n_action_steps", "2")
    )
    assert "watches the arm policy" in refused(
        flags("eval", checkpoint, tmp_path / "e", *watch, "--eval.arms", "no_op")
    )
    Calibration(scale, 1.0, 0.25, 1, 3).save(file)
    assert "does not say which checkpoint" in refused(flags("eval", checkpoint, tmp_path / "e", *only))
    assert not (tmp_path / "e").exists()


def test_what_cannot_be_is_told_before_anything_runs(tmp_path, checkpoint, fake_world, capsys):
    def refused(output_dir: Path, *more: str) -> str:
        assert main(flags("calibrate", checkpoint, output_dir, *more)) == 1
        return capsys.readouterr().err

    assert "20 trials are too few: a false-alarm rate of 0.05 needs 25" in refused(tmp_path, "--n_episodes", "10")
    assert "between 0 and 1" in refused(tmp_path, "--false_alarm_rate", "5")
    assert "whose digest the calibration names" in refused(checkpoint / "monitor")
    assert list(tmp_path.iterdir()) == []


def test_inference_settings_are_recorded_and_are_another_policy(tmp_path, checkpoint, fake_world, capsys):
    """An evaluation with other settings is none to be resumed, and a monitor's calibration none of this policy's."""
    scale, digest = Scale("copy_present", {"400": 1e-3}), checkpoint_record(checkpoint)["sha256"]
    Calibration(scale, 1.0, 0.25, 1, 3, checkpoint=digest).save(tmp_path / "calibration.json")
    out, chosen = tmp_path / "eval", ("--policy.settings", "action.denoise_steps=3")
    arms = ("--eval.arms", "policy", "--eval.n_episodes", "1")
    assert main([*flags("eval", checkpoint, out, *arms), *chosen]) == 0
    record = json.loads((out / "eval.json").read_text())["provenance"]
    assert record["checkpoint"]["settings"] == {"action.denoise_steps": 3}
    assert main([*flags("eval", checkpoint, out, *arms, "--resume"), *chosen]) == 0
    capsys.readouterr()
    assert main([*flags("eval", checkpoint, out, *arms, "--resume")]) == 1
    assert "resume with the same settings" in capsys.readouterr().err
    watched = ("--calibration", str(tmp_path / "calibration.json"))
    assert main([*flags("eval", checkpoint, tmp_path / "other", *arms, *watched), *chosen]) == 1
    assert f'this one is {digest[:12]} with {{"action.denoise_steps": 3}}: calibrate' in capsys.readouterr().err
    typo = ("--policy.settings", "action.denoise_step=3")
    assert main([*flags("eval", checkpoint, tmp_path / "typo", *arms), *typo]) == 1
    assert "Did you mean 'action.denoise_steps'" in capsys.readouterr().err
