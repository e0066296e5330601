"""Published Fast-WAM checkpoints and LeRobot's, at small size: both ways are bit-equal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro_video import FAST, VAE, fast
from micro_weights import named_weights
from safetensors.torch import load_file, save_file

from wamkit.encoders.wan_vae import WanVAE
from wamkit.models.fast_wam.convert import convert
from wamkit.models.fast_wam.published_names import by_expert, by_layer, published_names
from wamkit.models.published import ConversionError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    named_weights(WanVAE(VAE)).model.save_pretrained(folder / "vae")
    return replace(FAST, vae=replace(VAE, weights=str(folder)))


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    own = fast().state_dict()
    return {theirs: own[ours].clone() for ours, theirs in published_names(own).items()}


def test_the_published_names(published):
    assert {
        "mot.mixtures.video.blocks.2.self_attn.q.weight",
        "mot.mixtures.video.head.modulation",
        "mot.mixtures.action.blocks.0.cross_attn.norm_k.weight",
        "mot.mixtures.action.action_encoder.bias",
        "mot.mixtures.action.time_projection.1.weight",
        "mot.mixtures.action.head.weight",
        "proprio_encoder.weight",
    } <= set(published)
    layered = by_layer(published)
    assert "model.mot.layers.2.blocks.video.self_attn.q.weight" in layered
    assert by_expert(layered).keys() == published.keys()


@pytest.mark.parametrize("kind", ["published", "lerobot"])
def test_there_and_back(tmp_path, published, config, kind):
    if kind == "published":
        file = tmp_path / "fastwam.pt"
        mot = {name.removeprefix("mot."): value for name, value in published.items() if name.startswith("mot.")}
        state = {name.removeprefix("proprio_encoder."): v for name, v in published.items() if "proprio" in name}
        torch.save({"mot": mot, "proprio_encoder": state, "step": 3}, file)
    else:
        file = tmp_path / "lerobot" / "model.safetensors"
        file.parent.mkdir()
        save_file(by_layer(published), file)
    weights = convert(file, tmp_path / "ours", config=config)
    ours, own = load_file(weights), fast().state_dict()
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[name], own[name]) for name in published_names(own))
    assert json.loads((weights.parent / "config.json").read_text())["type"] == "fast_wam"
    back = load_file(convert(weights.parent, tmp_path / "back.safetensors"))
    assert back.keys() == by_layer(published).keys()
    assert all(torch.equal(value, by_expert(back)[name]) for name, value in published.items())


def test_what_does_not_fit_is_refused(tmp_path, published, config):
    file = tmp_path / "model.safetensors"
    save_file(by_layer(published), file)
    with pytest.raises(ConversionError, match="holds no VAE"):
        convert(file, tmp_path / "a", config=replace(config, vae=replace(VAE, weights=str(tmp_path / "no"))))
    with pytest.raises(ConversionError, match="do not fit"):
        convert(file, tmp_path / "b", config=replace(config, max_state_dim=9))
    with pytest.raises(ConversionError, match=r"holds no model.safetensors"):
        convert(tmp_path / "nothing", tmp_path / "c")
    torch.save({"mot": {}}, tmp_path / "half.pt")
    with pytest.raises(ConversionError, match="lacks mot or proprio_encoder"):
        convert(tmp_path / "half.pt", tmp_path / "d")
