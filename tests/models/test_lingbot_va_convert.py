"""The converter, from the published names and back, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import LINGBOT, OWN, lingbot
from safetensors.torch import load_file, save_file

from wamkit.encoders.wan_vae import WanVAE
from wamkit.inference.policy import read_config
from wamkit.models.lingbot_va.convert import convert
from wamkit.models.lingbot_va.published_names import published_names
from wamkit.models.published import ConversionError

NAMED = replace(LINGBOT, tokenizer=replace(LINGBOT.tokenizer, weights="somewhere"))


def saved(model, folder):
    folder.mkdir()
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_there_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr(WanVAE, "load_pretrained", lambda self: None)
    ours = saved(lingbot(), tmp_path / "ours")
    published = convert(tmp_path / "ours", tmp_path / "lerobot.safetensors")
    names = load_file(published)
    assert "transformer.patch_embedding_mlp.weight" in names
    assert names["transformer.patch_embedding_mlp.weight"].ndim == 2
    back = convert(published, tmp_path / "again", config=NAMED)
    stored = load_file(back)
    for name in published_names(ours):
        assert torch.equal(stored[name], ours[name]), name
    kind, values, _ = read_config(tmp_path / "again")
    assert kind == "lingbot_va"
    assert values["order"] == "after_video"


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    saved(lingbot(), tmp_path / "ours")
    published = convert(tmp_path / "ours", tmp_path / "lerobot.safetensors")
    with pytest.raises(ConversionError, match="holds no VAE"):
        convert(published, tmp_path / "again", config=LINGBOT)
    monkeypatch.setattr(WanVAE, "load_pretrained", lambda self: None)
    deeper = replace(NAMED, video=replace(LINGBOT.video, layers=3))
    with pytest.raises(ConversionError, match="names or sizes do not fit"):
        convert(published, tmp_path / "again", config=deeper)
    saved(lingbot(action=OWN), tmp_path / "two")
    with pytest.raises(ConversionError, match="one backbone"):
        convert(tmp_path / "two", tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match="holds neither"):
        convert(tmp_path, tmp_path / "x")
