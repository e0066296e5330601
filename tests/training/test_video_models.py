"""From a recorded data set to trained video models: VAE, video, policy, on real stores; then acting and imagining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_video import FAST, LIGHT
from whole_road import latent_stores, short_run, weights_by_stage

from wamkit.inference.policy import load
from wamkit.models import registry
from wamkit.recipes._video_policy import video_policy
from wamkit.recipes.fast_wam_metaworld import fast_wam_metaworld
from wamkit.recipes.light_wam_metaworld import light_wam_metaworld
from wamkit.training.loop import train

ONE_VIEW = dict(cameras=("front",), canvas="single", horizon_s=0.4)
MODELS = {"light_wam": replace(LIGHT, **ONE_VIEW), "fast_wam": replace(FAST, **ONE_VIEW)}


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, disc_recording, tmp_path_factory) -> tuple[str, Path]:
    name, folder = request.param, tmp_path_factory.mktemp(request.param) / "run"
    train(short_run(video_policy(name, MODELS[name], "disc", policy_steps=100), disc_recording, folder))
    return name, folder


def test_the_whole_road(trained):
    name, folder = trained
    assert len(latent_stores(folder)) == 1  # the VAE is frozen after its stage, so both later stages read one store
    by_stage = weights_by_stage(folder, ("vae", "video", "policy"))
    after_vae, after_video, after_policy = by_stage.values()
    for key, value in after_policy.items():
        if key.startswith(("vae.", "text.")):
            assert torch.equal(value, after_vae[key]), key
        frozen = name == "light_wam" and "base_layer" in key
        if frozen:
            assert torch.equal(value, after_video[key]), key
    assert any(
        not torch.equal(after_video[key], after_vae[key]) for key in after_vae if "base_layer" in key or "ffn" in key
    )

    policy = load(folder, device="cpu", precision="fp32")
    observation = {
        "observation.images.front": np.zeros((16, 16, 3), np.uint8),
        "observation.state": np.zeros(4, np.float32),
        "task": "pull it",
    }
    chunk = policy.act(observation, seeds=[0])
    assert chunk.valid.sum() == 4
    assert chunk.actions.isfinite().all()
    future = policy.imagine(observation)
    assert future.values.shape[1] == 4
    assert future.times[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_imagining_from_the_command_line(trained, disc_recording, tmp_path):
    """Video beside the real one, on the held-out episode, and pictures of it."""
    from wamkit.cli.groups import DatasetFlags, UsedPolicyFlags
    from wamkit.cli.imagine import ImagineArguments, imagine
    from wamkit.evaluation.results import load_json

    arguments = ImagineArguments(UsedPolicyFlags(trained[1]), DatasetFlags(disc_recording), tmp_path / "out", windows=4)
    said = imagine(arguments)
    assert "video 0.10 s ahead: PSNR" in said
    result = load_json(tmp_path / "out" / "imagine.json")
    assert result["windows"]["n"] > 0
    assert len(result["pixel_error"]["psnr"]["model"]) == 4
    assert (tmp_path / "out" / "imagined" / "imagined_0.png").is_file()


@pytest.mark.parametrize("recipe", [light_wam_metaworld, fast_wam_metaworld])
def test_the_recipes_fit_their_models(recipe):
    config = recipe()
    model = registry.model_class(config.model).preset(config.preset)
    built = registry.build(config.model, config.preset)
    assert tuple(stage.name for stage in config.stages) == built.stages
    for stage in config.stages:
        assert stage.window.frame_offsets_s == model.frame_offsets_s
        assert stage.window.resolution == model.resolution
        assert stage.window.cameras == model.cameras
    policy = config.stages[-1].window
    assert (policy.chunk_s, policy.max_actions) == (model.horizon_s, model.max_actions)
