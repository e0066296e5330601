"""Two views of one clip: LaWAM's encoder reads the motion in one and LaWM predicts it in the other (appendix C.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_lawam import lawam
from micro_weights import seeded

from wamkit.types import Window


@pytest.fixture(scope="module")
def model():
    return lawam()


@pytest.fixture
def clips(model, monkeypatch) -> list[torch.Tensor]:
    """What the visual encoder was given, call by call."""
    given = []
    encode = model.encode

    def spy(frames):
        given.append(frames)
        return encode(frames)

    monkeypatch.setattr(model, "encode", spy)
    return given


def still(model, batch: int = 3) -> Window:
    """Nothing moves, and all samples show the same."""
    window = model.fake_window(batch)
    frames = {camera: pictures[:1, :1].expand_as(pictures) for camera, pictures in window.frames.items()}
    return replace(window, frames=frames)


def test_each_clip_gets_two_views_that_do_not_change_within_it(model, clips):
    model.prepare_stage("latent_action")
    window = still(model)
    model.loss(window, "latent_action", seeded())
    (encoded,) = clips
    views = encoded.unflatten(0, (3, 2, 2))  # sample, view, time
    assert (views[:, :, 0] == views[:, :, 1]).all()
    pictures = {tuple(view.flatten().tolist()) for view in views[:, :, 0].flatten(0, 1)}
    assert len(pictures) == 6  # three samples of two views, each under another draw
    assert tuple(window.frames["front"][0, 0].flatten().tolist()) not in pictures


def test_the_encoder_infers_in_one_view_and_lawm_predicts_in_the_other(model, monkeypatch):
    model.prepare_stage("latent_action")
    seen = []
    losses = model.lam.losses
    monkeypatch.setattr(model.lam, "losses", lambda pairs, generator: seen.append(pairs) or losses(pairs, generator))
    model.loss(still(model), "latent_action", seeded())
    (pairs,) = seen
    assert torch.equal(pairs.present, pairs.future)
    assert torch.equal(pairs.decoded_present, pairs.decoded_future)
    assert not torch.equal(pairs.present, pairs.decoded_present)


def test_the_steps_generator_alone_decides(model):
    model.prepare_stage("latent_action")
    window = model.fake_window(2)

    def values(seed: int) -> dict[str, torch.Tensor]:
        return {name: term.value for name, term in model.loss(window, "latent_action", seeded(seed)).terms.items()}

    first = values(1)
    before = torch.get_rng_state()
    again, other = values(1), values(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(other["reconstruction"], first["reconstruction"])


def test_pictures_stay_as_they_are_where_the_config_says_so_in_validation_and_in_other_stages(model, clips):
    window = model.fake_window(2)
    plain = torch.stack([window.frames["front"][:, 0], window.frames["front"][:, -1]], dim=1).flatten(0, 1)
    model.prepare_stage("latent_action")
    model.eval()
    model.loss(window, "latent_action", seeded())
    model.prepare_stage("policy")
    model.loss(window, "policy", seeded())
    model.prepare_stage("latent_action")
    config = model.config
    model.config = replace(config, dual_view=False)
    model.loss(window, "latent_action", seeded())
    model.config = config
    assert len(clips) == 3
    assert all(torch.equal(frames, plain) for frames in clips)


def test_stored_views_are_taken_as_stored(model, clips):
    model.prepare_stage("latent_action")
    window = model.fake_window(2)
    features = torch.randn(2, 2, 2, model.vision_encoder.tokens, model.vision_encoder.width, generator=seeded())
    stored = replace(window, features={"front": features})
    losses = model.loss(stored, "latent_action", seeded())
    assert clips == []
    expected = (features[:, 1, 0] - features[:, 1, 1]).square().mean()
    assert losses.metrics["copy_present"].item() == pytest.approx(expected.item(), rel=1e-5)
