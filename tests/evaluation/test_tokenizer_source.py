"""Tokenizers and encoders come out of checkpoints as they went in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from wamkit.configuration import to_dict
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.encoders.wan_vae import WanVAE, WanVAEConfig
from wamkit.errors import WamkitError
from wamkit.evaluation.tokenizer_source import PUBLISHED, load_part, load_published, parts_of
from wamkit.models import registry
from wamkit.training.checkpoint import WEIGHTS, save_weights
from wamkit.training.distributed import full_state, shared_names


def saved(folder, name: str, **changes):
    torch.manual_seed(0)
    model = registry.build(name, replace(registry.model_class(name).preset("tiny"), **changes))
    folder.mkdir()
    save_weights(full_state(model), folder / WEIGHTS, shared_names(model))
    (folder / "config.json").write_text(json.dumps({"type": name, "stage": "policy", **to_dict(model.config)}))
    return model


def test_published_weights_are_loaded_or_missed(tmp_path):
    config = WanVAEConfig(
        weights=None, channels=4, width=4, multipliers=(1, 1, 1), residual_blocks=1, temporal_downsample=(True, True)
    )
    torch.manual_seed(0)
    vae = WanVAE(config)
    vae.model.save_pretrained(tmp_path / "vae")
    loaded = load_published(replace(config, weights=str(tmp_path)))
    assert not loaded.training
    for name, value in vae.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    with pytest.raises(WamkitError, match="set vae.weights"):
        load_published(replace(config, weights=str(tmp_path / "none")))
    assert all(make().weights for make in PUBLISHED.values())


def test_parts_come_out_as_they_went_in(tmp_path):
    model = saved(tmp_path / "light_wam", "light_wam")
    vae = load_part(tmp_path / "light_wam")
    assert isinstance(vae, WanVAE)
    assert vae.weights_hash() == model.vae.weights_hash()
    assert not vae.training
    lawam = saved(tmp_path / "lawam", "lawam")
    encoder = load_part(tmp_path / "lawam", "vision_encoder")
    assert isinstance(encoder, PatchEncoder)
    assert encoder.weights_hash() == lawam.vision_encoder.weights_hash()
    assert list(parts_of(lawam)) == ["vision_encoder"]
    with pytest.raises(WamkitError, match="no tokenizer or encoder 'vae'"):
        load_part(tmp_path / "lawam", "vae")
    with pytest.raises(WamkitError, match="there is no folder"):
        load_part(tmp_path / "nowhere")
