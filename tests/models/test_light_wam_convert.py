"""Published Light-WAM checkpoints, at small size: every tensor finds its place, both ways are bit-equal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro_video import LIGHT, VAE, VIDEO, light
from micro_weights import named_weights
from safetensors.torch import load_file, save_file

from wamkit.configuration import to_dict
from wamkit.dynamics.video_dit import VideoDiT
from wamkit.encoders.wan_vae import WanVAE
from wamkit.models.light_wam.convert import convert, released
from wamkit.models.light_wam.published_names import flattened, links, nested
from wamkit.models.published import ConversionError
from wamkit.models.registry import build


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Wan's files in diffusers' layout, at small size."""
    folder = tmp_path_factory.mktemp("wan")
    named_weights(WanVAE(VAE)).model.save_pretrained(folder / "vae")
    named_weights(VideoDiT(VIDEO)).model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def config(wan):
    return replace(LIGHT, vae=replace(VAE, weights=str(wan)), video=replace(VIDEO, weights=str(wan)))


@pytest.fixture(scope="module")
def model():
    return light()


@pytest.fixture
def published(tmp_path, model):
    """A file under the published names."""
    own = model.state_dict()
    flat = {}
    for link in links(own):
        flat |= link.to_published(own)
    file = tmp_path / "published.pt"
    torch.save(
        nested({name: value.clone() for name, value in flat.items()}) | {"step": 12, "torch_dtype": "fp32"}, file
    )
    return file


def test_the_published_names(published):
    names = set(flattened(torch.load(published, weights_only=True)))
    assert {
        "mot.mixtures.video.blocks.2.self_attn.q.weight",
        "mot.mixtures.video.blocks.0.ffn_lora_in.down_proj.weight",
        "mot.mixtures.video.blocks.1.cross_attn.lora_o.up_proj.weight",
        "mot.mixtures.video.wam_adapters.1.down_proj.weight",
        "mot.mixtures.video.head.modulation",
        "state_fusion_action_expert.layer_poolers.0.adapted.query_tokens",
        "state_fusion_action_expert.layer_poolers.1.adapted.attn.in_proj_weight",
        "state_fusion_action_expert.layer_poolers.1.adapted.query_merge_logits",
        "state_fusion_action_expert.layer_compressors.0.fc2.bias",
        "state_fusion_action_expert.fused_proj.weight",
        "state_fusion_action_expert.trunk.0.fc1.weight",
        "state_fusion_action_expert.step_pos_proj.3.weight",
        "state_fusion_action_expert.output.2.bias",
        "proprio_encoder.weight",
    } <= names
    assert not any("to_q" in name or "enter" in name for name in names)


def test_there_and_back(tmp_path, published, config, model, wan):
    weights = convert(published, tmp_path / "ours", config=config)
    ours, own = load_file(weights), model.state_dict()
    assert ours.keys() == own.keys()
    for name, value in ours.items():
        if not name.startswith(("vae.", "text.")):
            assert torch.equal(value, own[name]), name
    vae = named_weights(WanVAE(VAE)).model.state_dict()
    assert all(torch.equal(ours[f"vae.model.{name}"], value) for name, value in vae.items())

    described = json.loads((weights.parent / "config.json").read_text())
    assert described.pop("type") == "light_wam"
    assert described.pop("stage") == "policy"
    rebuilt = build("light_wam", described)
    rebuilt.load_state_dict(ours)
    assert rebuilt.config == config

    back = flattened(torch.load(convert(weights.parent, tmp_path / "back.pt"), weights_only=True))
    first = flattened(torch.load(published, weights_only=True))
    assert back.keys() == first.keys()
    assert all(torch.equal(back[name], value) for name, value in first.items())


def test_a_file_without_the_frozen_backbone_takes_wans(tmp_path, published, config, wan):
    values = torch.load(published, weights_only=True)
    trained = ("lora", "wam_adapters", "head.")
    values["dit"] = {name: v for name, v in values.pop("mot").items() if any(part in name for part in trained)}
    torch.save(values, published)
    ours = load_file(convert(published, tmp_path / "ours", config=config))
    theirs = named_weights(VideoDiT(VIDEO)).model.state_dict()
    assert torch.equal(ours["backbone.model.blocks.0.ffn.net.2.base_layer.weight"], theirs["blocks.0.ffn.net.2.weight"])
    assert torch.equal(ours["backbone.model.proj_out.weight"], light().state_dict()["backbone.model.proj_out.weight"])


def test_what_does_not_fit_is_refused(tmp_path, published, config):
    values = torch.load(published, weights_only=True)
    with pytest.raises(ConversionError, match="holds no VAE"):
        convert(published, tmp_path / "a", config=replace(config, vae=replace(VAE, weights=str(tmp_path / "no"))))
    with pytest.raises(ConversionError, match=r"sizes differ|missing"):
        convert(published, tmp_path / "b", config=replace(config, adapter_width=16))
    values["proprio_encoder"]["extra"] = torch.zeros(1)
    torch.save(values, published)
    with pytest.raises(ConversionError, match="proprio_encoder.extra"):
        convert(published, tmp_path / "c", config=config)
    del values["state_fusion_action_expert"]
    torch.save(values, published)
    with pytest.raises(ConversionError, match="lacks state_fusion_action_expert"):
        convert(published, tmp_path / "d", config=config)
    with pytest.raises(ConversionError, match="holds no model.safetensors"):
        convert(tmp_path, tmp_path / "e")


def test_another_models_folder_is_refused(tmp_path):
    folder = tmp_path / "pretrained_model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "lawam"}))
    with pytest.raises(ConversionError, match="no config.json of a light_wam"):
        convert(folder, tmp_path / "x.pt")


def test_what_the_released_scripts_do_otherwise():
    config = released(LIGHT)
    assert config.supervised_steps == 8
    assert to_dict(config)["expert"]["merge"] == "softmax"
