"""Every model of the registry: the runtime gives its actions, in fewer operations; of one that remembers, its first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.data.statistics import MIN_SCALE
from wamkit.evaluation.arithmetic import dispatched_operations
from wamkit.evaluation.latency_policy import observation_ring, unit_terms
from wamkit.inference.policy import Policy
from wamkit.inference.runtime import Runtime, RuntimeSettings
from wamkit.inference.runtime_record import LINEAR
from wamkit.models.registry import build, model_class, model_names

OPERATIONS_PER_STEP = {"lawam": 90, "light_wam": 0, "fast_wam": 141, "repwam": 143, "lingbot_va": 143}
"""Most operations in a denoise step of ``tiny``, joined layers counted once. Lower a number when a change lowers the
count; raising one makes every chunk slower on a GPU, where each operation costs a launch."""


def few_steps(name: str):
    """``tiny`` with three denoise steps: they are alike."""
    config = model_class(name).preset("tiny")
    if hasattr(config, "action_steps"):
        return replace(config, action_steps=3, video_steps=1)
    decoder = getattr(config, "action", None)
    if not hasattr(decoder, "denoise_steps"):
        return config
    return replace(config, action=replace(decoder, denoise_steps=3))


@pytest.fixture(scope="module", params=model_names())
def model(request):
    torch.manual_seed(0)
    model = build(request.param, few_steps(request.param)).eval()
    assert model.phases() is not None, "every model of the registry is to run fast"
    for parameter in model.parameters():
        if not parameter.abs().max():  # gates that start at zero would hide what they gate
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture(autouse=True)
def new_episode(model):
    """Pictures of different tests are no episode."""
    model.recall(None)


@pytest.fixture(scope="module")
def observation(model):
    return model.fake_window(1).observation()


@pytest.fixture(scope="module")
def noise(model):
    shape = model.action_noise_shape
    return None if shape is None else torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def runtime(model):
    return Runtime(model, RuntimeSettings(precision="fp32"))


@pytest.fixture(scope="module")
def reference(model, observation, noise):
    return model.act(observation, noise=noise)


def test_phases_say_what_act_does(model, observation, noise, reference):
    with torch.no_grad():
        chunk = model.phases().act(observation, noise)
    torch.testing.assert_close(chunk.actions, reference.actions, rtol=1e-6, atol=1e-6)
    assert torch.equal(chunk.times, reference.times)
    assert torch.equal(chunk.valid, reference.valid)


def test_fp32_equals_the_plain_model(runtime, observation, noise, reference):
    chunk = runtime.act(observation, noise=noise)
    assert (chunk.actions - reference.actions).abs().max() <= 1e-5 * reference.actions.abs().max()
    assert torch.equal(chunk.times, reference.times)
    assert torch.equal(chunk.valid, reference.valid)


def test_other_words_and_pictures_through_the_same_programs(model, runtime):
    window = model.fake_window(1, seed=3)
    observation = replace(window.observation(), task=("close it",))
    shape = model.action_noise_shape
    noise = None if shape is None else torch.randn(1, *shape)
    before = len(runtime.reports())
    chunk = runtime.act(observation, noise=noise)
    model.recall(None)
    reference = model.act(observation, noise=noise)
    assert (chunk.actions - reference.actions).abs().max() <= 1e-5 * reference.actions.abs().max()
    assert len(runtime.reports()) <= max(1, before)


def test_bf16_stays_near_fp32(model, observation, noise, reference):
    chunk = Runtime(model, RuntimeSettings(precision="bf16")).act(observation, noise=noise)
    cosine = torch.nn.functional.cosine_similarity(chunk.actions.flatten(), reference.actions.flatten(), dim=0)
    assert cosine >= 0.999


def test_physical_actions_agree_within_the_normalisers_resolution(model, runtime):
    policy, fast = (Policy(model, *unit_terms(model), precision="fp32") for _ in range(2))
    fast.runtime = runtime
    (observation,) = observation_ring(policy, 1)
    actions = []
    for which in (policy, fast):
        which.reset()
        actions.append(which.act(observation, seeds=[0]).actions.numpy())
    assert np.abs(actions[0] - actions[1]).max() < MIN_SCALE


def test_a_denoise_step_keeps_its_count_of_operations(model, runtime, observation):
    runtime.act(observation)
    report = runtime.reports()[0]
    assert report.operations_per_step <= OPERATIONS_PER_STEP[model.name]
    _, loop = runtime.recordings(observation)
    if loop is None:
        return
    noise, *_ = [node for node in loop.graph.nodes if node.op == "placeholder"]
    moving = {noise}
    for node in loop.graph.nodes:
        if any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    # A linear layer that does not follow from the noise projects the context or modulates: once, elsewhere.
    assert [node for node in loop.graph.nodes if node.target is LINEAR and node not in moving] == []


def test_it_runs_fewer_operations_than_the_plain_model(model, runtime, observation):
    runtime.act(observation)
    prefix, loop = runtime.programs(observation)
    assert prefix.operations + (0 if loop is None else loop.operations) < 0.8 * dispatched_operations(
        lambda: model.act(observation)
    )
