"""From a recorded data set to trained causal models, on real stores; then acting along an episode."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_causal import LINGBOT, REPWAM
from whole_road import latent_stores, short_run, weights_by_stage

from wamkit.cli import main
from wamkit.inference.execution_policy import policy_source
from wamkit.inference.policy import load
from wamkit.models import registry
from wamkit.models.causal.config import CausalModelError
from wamkit.recipes._causal_metaworld import causal_metaworld
from wamkit.recipes.lingbot_va_metaworld import lingbot_va_metaworld, lingbot_va_stages
from wamkit.recipes.repwam_metaworld import repwam_metaworld, repwam_stages
from wamkit.training.config import StageConfig
from wamkit.training.loop import train

# At 10 Hz a latent frame of 0.2 s holds two actions, and the picture at its end is really recorded.
HELD = dict(pictures="held", training_frames=2)
MODELS = {"repwam": replace(REPWAM, **HELD), "lingbot_va": replace(LINGBOT, **HELD)}
STAGES = {"repwam": repwam_stages, "lingbot_va": lingbot_va_stages}


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, disc_recording, tmp_path_factory) -> tuple[str, Path]:
    name, folder = request.param, tmp_path_factory.mktemp(request.param) / "run"
    stages = STAGES[name](MODELS[name])
    train(short_run(causal_metaworld(name, stages, MODELS[name]), disc_recording, folder))
    return name, folder


def test_the_whole_road(trained):
    name, folder = trained
    by_stage = weights_by_stage(folder, registry.build(name, MODELS[name]).stages)
    assert len(latent_stores(folder)) == 1  # the tokenizer is frozen after its stage: all later stages read one store
    first = next(iter(by_stage.values()))
    for stage in ("pretrain", "adapt"):
        moved = {n for n, value in by_stage[stage].items() if not torch.equal(value, first[n])}
        assert any(n.startswith("transformer.video.") for n in moved), stage
    tokenizer = by_stage["tokenizer" if name == "repwam" else "vae"]
    assert all(torch.equal(by_stage["adapt"][n], v) for n, v in tokenizer.items() if n.startswith("tokenizer."))


def observation(seed: int) -> dict[str, object]:
    picture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return {"observation.images.front": picture, "task": "push the disc"}


def test_a_robot_is_followed_along_its_episode(trained):
    _, folder = trained
    policy = load(folder, device="cpu", precision="fp32")
    assert policy.remembers
    source = policy_source(policy)
    assert source.picture_interval_s == pytest.approx(0.2)
    source.reset()
    first = source(observation(0))
    assert first.shape == (4, 2)  # two latent frames of two actions
    with pytest.raises(CausalModelError, match="nobody said what was executed"):
        source(observation(1))
    source.executed(first[:2])
    second = source(observation(1))
    (episode,) = policy.remember()
    assert episode.rows[0].frames == 2
    # A whole chunk at once passes two latent frames, of which one was seen on the way.
    source.executed(second)
    source.observed([observation(2)])
    assert np.isfinite(source(observation(3))).all()
    (episode,) = policy.remember()
    assert episode.rows[0].frames == 4
    source.reset()
    assert policy.remember() is None
    future = policy.imagine(observation(0))
    assert future.values.shape == (1, 2, 3, 16, 16)


def test_whole_episodes_are_imagined_and_shown(trained, disc_recording, tmp_path, capsys):
    name, folder = trained
    words = ["imagine", "--policy.path", folder, "--dataset.root", disc_recording, "--output_dir", tmp_path]
    words += ["--episodes", "all", "--windows", "6", "--rollouts", "2", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    rolled = json.loads((tmp_path / "imagine.json").read_text())["episode_rollouts"]
    assert rolled["horizon_s"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert [entry["seconds"] for entry in rolled["episodes"]] == pytest.approx([1.2, 1.2])
    told = {"true", "swapped"} if name == "repwam" else set()
    assert set(rolled["psnr"]) == told | {"none", "copy_first", "reconstruction"}
    assert "whole episodes (2): squared error told" in said
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Episodes it imagines" in page
    assert page.count("data:video/mp4") == 2
    assert ("does not predict frames under their own" in page) == (name == "lingbot_va")


def test_recipes_name_stages_and_windows_of_their_models():
    for recipe in (repwam_metaworld(), lingbot_va_metaworld()):
        model = registry.build(recipe.model, recipe.preset)
        assert tuple(stage.name for stage in recipe.stages) == model.stages
        acting: StageConfig = recipe.stages[-1]
        assert acting.window.frame_offsets_s == model.config.frame_offsets_s
        assert acting.window.action_count(80.0) == acting.window.max_actions == 32
        assert acting.window.cameras == model.config.cameras
