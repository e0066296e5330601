"""Tokenizers and encoders come out of checkpoints as they went in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from wamkit.configuration import to_dict
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.encoders.wan_vae import WanVAE
from wamkit.errors import WamkitError
from wamkit.evaluation.tokenizer_source import load_part, parts_of
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
