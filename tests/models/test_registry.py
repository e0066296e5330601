"""Every model of the registry keeps the contract of `WorldActionModel`."""

from __future__ import annotations

from math import prod

import pytest
import torch
from micro_weights import other_future

from wamkit.configuration import to_dict
from wamkit.errors import WamkitError
from wamkit.models.base import StageError, WorldActionModel
from wamkit.models.registry import PRESETS, build, model_class, model_names


@pytest.fixture(scope="module", params=model_names())
def model(request) -> WorldActionModel:
    torch.manual_seed(0)
    return build(request.param, "tiny")


def test_every_stage_gives_a_value_for_each_sample_and_trains_what_it_says(model):
    for stage in model.stages:
        model.prepare_stage(stage)
        losses = model.loss(model.fake_window(2, stage=stage), stage, torch.Generator().manual_seed(0))
        assert list(losses)
        for term in losses.terms.values():
            assert term.value.shape == term.valid.shape == (2,)
        losses.total().backward()
        grouped = {id(p) for group in model.parameter_groups(stage) for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert (id(parameter) in grouped) == parameter.requires_grad, name
            assert (parameter.grad is not None) == parameter.requires_grad, name
        assert sum(len(group["params"]) for group in model.parameter_groups(stage)) == len(grouped)
        model.zero_grad()


def test_act(model):
    model.eval()
    model.recall(None)
    observation = model.fake_window(2).observation()
    chunk = model.act(observation, generator=torch.Generator().manual_seed(0))
    again = model.act(observation, generator=torch.Generator().manual_seed(0))
    assert chunk.actions.shape[:2] == chunk.times.shape == chunk.valid.shape
    assert chunk.actions.isfinite().all()
    assert torch.equal(chunk.actions, again.actions)
    assert model.act(observation.__class__(**{**vars(observation), "state": None})).actions.isfinite().all()


def test_imagine(model):
    if not model.capabilities.imagines:
        pytest.skip(f"{model.name} imagines nothing")
    future = model.imagine(model.fake_window(2).observation())
    assert future.space in model.capabilities.imagines
    assert future.values.shape[0] == 2
    assert future.values.shape[2:] == future.present.shape[1:]
    assert (future.times > 0).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", model_names())
def test_a_video_token_and_its_noise_fit_through_the_expert(name, preset):
    """The velocity holds a token's own noise: an expert narrower than that cannot learn to predict it."""
    video = getattr(model_class(name).preset(preset), "video", None)
    if video is None:
        pytest.skip(f"{name} predicts no video")
    assert prod(video.patch) * video.channels <= video.heads * video.head_width / 2


def test_unknown_stages_are_refused(model):
    with pytest.raises(StageError, match=r"has no stage 'polcy'"):
        model.prepare_stage("polcy")


def test_a_model_is_rebuilt_from_its_config(model):
    again = build(model.name, to_dict(model.config))
    assert again.config == model.config
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", model_names())
def test_presets(name):
    assert all(isinstance(model_class(name).preset(preset), model_class(name).config_class) for preset in PRESETS)
    with pytest.raises(WamkitError, match=r"no preset 'tinny'.*tiny"):
        model_class(name).preset("tinny")


def test_unknown_models_are_refused():
    with pytest.raises(WamkitError, match=r"There is no model 'lawm'.*lawam"):
        build("lawm")


def test_future_frames_reach_no_action(model):
    """The leakage test: with every future picture changed, what a policy learns and does about actions is bit-equal."""
    stage = model.stages[-1]
    model.prepare_stage(stage)
    # Of a sequence of several chunks the earlier ones are what has been observed by the later: one chunk alone has
    # nothing but its future after the present. Longer ones are tested in test_causal_model.py.
    window = model.fake_sequence(1, 2) if model.capabilities.remembers else model.fake_window(2, stage=stage)
    assert all(pictures.shape[1] > 1 for pictures in window.frames.values())
    other = other_future(window)
    first, second = (model.loss(w, stage, torch.Generator().manual_seed(0)).terms for w in (window, other))
    assert torch.equal(first["action"].value, second["action"].value)
    model.eval()
    chunks = []
    for shown in (window, other):
        model.recall(None)  # new episodes, for a model with a memory
        chunks.append(model.act(shown.observation(), generator=torch.Generator().manual_seed(0)).actions)
    assert torch.equal(*chunks)
