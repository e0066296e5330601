"""LaWAM's two views: drawn at every step, the same again in a resumed run, or taken from a store of several."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro_lawam import LAWAM
from safetensors.torch import load_file

from wamkit.data.windows import WindowSpec
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig
from wamkit.training.loop import train
from wamkit.training.stages import build_model, build_stage_data

# The recording's embodiment lies beyond the few of the smallest model, so no state is asked for.
MODEL = replace(LAWAM, cameras=("front",), latent_action=replace(LAWAM.latent_action, max_state_dim=0))
WINDOW = WindowSpec(frame_offsets_s=(0.0, MODEL.horizon_s), cameras=("front",), resolution=32)


def run_on(root: Path, folder: Path, window: WindowSpec = WINDOW, **dataset) -> TrainConfig:
    return TrainConfig(
        name="views",
        model="lawam",
        model_config=MODEL,
        dataset=DatasetConfig(roots=(str(root),), cache_dir=str(folder / "cache"), **dataset),
        stages=(StageConfig(name="latent_action", window=window, steps=3, batch_size=4, learning_rate=1e-3),),
        output_dir=str(folder / "whole"),
        device="cpu",
        precision="fp32",
        save_every=1,
        keep_last=3,
        workers=0,
        logger="none",
    )


def test_a_resumed_run_draws_the_same_views(disc_recording, tmp_path):
    config = run_on(disc_recording, tmp_path)
    whole = load_file(train(config) / "model.safetensors")
    assert not list((tmp_path / "cache").glob("features-*"))

    link = tmp_path / "whole" / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000001")
    for later in ("000002", "000003"):
        shutil.rmtree(link.with_name(later))
    resumed = load_file(train(replace(config, resume=True)) / "model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())

    off = replace(config, model_config=replace(MODEL, dual_view=False), output_dir=str(tmp_path / "off"))
    plain = load_file(train(off) / "model.safetensors")
    assert any(not torch.equal(plain[name], value) for name, value in whole.items())


@pytest.mark.parametrize(("asked", "kept", "views"), [(2, 0, 2), (2, 4, 4), (1, 4, 1)])
def test_a_store_keeps_as_many_views_as_the_run_says(disc_recording, tmp_path, asked, kept, views):
    config = run_on(disc_recording, tmp_path, replace(WINDOW, feature_views=asked), stored_views=kept)
    mixture = build_stage_data(config, config.stages[0], build_model(config), rank=0, world_size=1).loader.mixture
    store = mixture.entries[0].feature_store
    assert store.views == views
    _, episodes, rows = mixture.locate(range(40))
    features = mixture.window(range(40)).features["front"][:, :, 0]
    assert features.shape[1] == asked
    drawn = set()
    for window, (episode, row) in enumerate(zip(episodes.tolist(), rows.tolist(), strict=True)):
        stored = [store.features("front", episode, [row / 10.0], view)[0] for view in range(views)]
        drawn |= {v for v in range(views) for seen in features[window] if torch.equal(seen, stored[v])}
    assert drawn == set(range(views))
