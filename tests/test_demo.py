"""`wam demo --toy`: the whole road of `make demo`, a few steps of everything."""

from __future__ import annotations

import json

import pytest

from wamkit.cli.demo import TASKS, DemoArguments, demo_config
from wamkit.data.lerobot import LeRobotSource

pytestmark = [pytest.mark.slow, pytest.mark.sim]


def test_the_whole_road(tmp_path):
    from wamkit.cli.demo import run

    output = tmp_path / "demo"
    assert run(["--toy", "--output_dir", str(output)]) == 0

    evaluation = json.loads((output / "eval.json").read_text())
    assert set(evaluation["arms"]) == {"policy", "no_op", "random", "expert", "blind", "swapped_instruction"}
    encoders = evaluation["provenance"]["checkpoint"]["encoders"]
    assert encoders["encoder"]["kind"] == "patch_encoder"
    assert "trained in stage 'encoder' of this run, 2 steps" in encoders["encoder"]["origin"]
    assert all(set(arm["tasks"]) == set(TASKS) for arm in evaluation["arms"].values())
    imagined = json.loads((output / "imagine.json").read_text())
    assert imagined["feature_error"]["n"] > 0
    assert set(imagined["encoder_probe"]) == {"end_effector", "object", "object_within_task"}
    latency = json.loads((output / "latency.json").read_text())
    assert latency["parts"].keys() == {"vision_encoder", "vlm", "lawm", "action_context", "denoise_loop"}
    assert latency["total"]["p50_ms"] > 0
    assert latency["provenance"]["checkpoint"]["sha256"] == evaluation["provenance"]["checkpoint"]["sha256"]
    html = (output / "report.html").read_text()
    assert len(html) > 50_000
    assert "denoise loop" in html
    assert "patch encoder (masked autoencoder)" in html
    assert "encoder features → object position" in html
    assert (output / "checkpoints/last/pretrained_model/model.safetensors").is_file()

    trained, unseen = (LeRobotSource(output / name) for name in ("recordings", "recordings_unseen"))
    assert len(trained.episodes) == len(TASKS)
    assert {episode.task for episode in trained.episodes} == {episode.task for episode in unseen.episodes}
    first = [source.column("observation.state")[source.episodes[0].rows] for source in (trained, unseen)]
    assert len(first[0]) != len(first[1]) or abs(first[0] - first[1]).max() > 1e-3


def test_the_policy_learns_from_all_that_was_recorded_for_it(tmp_path):
    config = demo_config(tmp_path / "recordings", DemoArguments(output_dir=tmp_path))
    assert config.dataset.holdout_episodes == 0
    assert [stage.name for stage in config.stages] == ["encoder", "latent_action", "policy"]
