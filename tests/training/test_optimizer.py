"""Groups, schedule, moving average and seeds, each against its definition."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import ToyConfig, ToyModel, toy_config

from wamkit.training.optimizer import (
    MovingAverage,
    build_optimizer,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from wamkit.training.seeding import StepRandomness, derive_seed, rng_state, set_rng_state

legacy = np.random.standard_normal


@pytest.fixture
def stage(tmp_path):
    return toy_config(tmp_path).stages[0]


@pytest.fixture
def model():
    model = ToyModel(ToyConfig())
    model.prepare_stage("world")
    return model


def test_biases_and_norms_are_not_decayed_and_frozen_parameters_left_out(model, stage):
    groups = [{"params": list(model.parameters()), "name": "all", "lr_scale": 0.5, "weight_decay": True}]
    optimizer = build_optimizer(model, groups, stage)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay["encoder.0.weight"] == stage.weight_decay
    assert decay["encoder.0.bias"] == 0
    assert decay["encoder.1.norm.weight"] == 0
    assert not any(name.startswith("policy") for name in decay)
    assert set_learning_rate(optimizer, stage, stage.warmup_steps) == pytest.approx(stage.learning_rate, rel=0.02)
    assert all(group["lr"] == pytest.approx(0.5 * stage.learning_rate, rel=0.02) for group in optimizer.param_groups)


def test_schedule(stage):
    stage = dataclasses.replace(stage, steps=100, warmup_steps=10, final_lr_fraction=0.1)
    factors = [learning_rate_factor(stage, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[54] == pytest.approx(0.55)  # half way down
    assert factors[99] == pytest.approx(0.1)
    assert factors[9:] == sorted(factors[9:], reverse=True)
    flat = dataclasses.replace(stage, schedule="constant")
    assert [learning_rate_factor(flat, step) for step in (4, 10, 99)] == [0.5, 1.0, 1.0]


def test_optimizer_state_survives_a_round_trip(model, stage):
    def fresh():
        return build_optimizer(model, model.parameter_groups("world"), stage)

    optimizer = fresh()
    for _ in range(3):
        model.loss(model.fake_window(4), "world", torch.Generator().manual_seed(0)).total().backward()
        optimizer.step()
    stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    assert "state/encoder.0.weight/exp_avg_sq" in stored
    again = fresh()
    load_optimizer_tensors(again, stored)
    returned = optimizer_tensors(again)
    assert stored.keys() == returned.keys()
    assert all(torch.equal(stored[name], returned[name]) for name in stored)
    with pytest.raises(Exception, match="disagrees on"):
        load_optimizer_tensors(again, {name.replace("head", "hand"): value for name, value in stored.items()})


def test_moving_average_follows_its_equation():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = MovingAverage({"p": parameter}, decay=0.9)
    expected = parameter.detach().clone()
    for step in range(200):
        parameter.data += 1.0
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
        average.update(step)
    torch.testing.assert_close(average.tensors()["p"], expected)
    before = parameter.detach().clone()
    average.swap()
    torch.testing.assert_close(parameter.detach(), expected)
    average.swap()
    assert torch.equal(parameter.detach(), before)


def test_randomness_depends_on_the_place_alone():
    def draw(randomness, step, micro=0):
        generator = randomness.at(step, micro)
        return [*torch.randn(3, generator=generator).tolist(), random.random(), legacy(), torch.rand(()).item()]

    one = StepRandomness(0, "policy", 0, torch.device("cpu"))
    sequence = [draw(one, step) for step in range(3)]
    other = StepRandomness(0, "policy", 0, torch.device("cpu"))
    assert draw(other, 2) == sequence[2]
    different = [
        sequence[0],
        sequence[1],
        draw(one, 0, 1),
        draw(StepRandomness(1, "policy", 0, torch.device("cpu")), 0),
        draw(StepRandomness(0, "world", 0, torch.device("cpu")), 0),
        draw(StepRandomness(0, "policy", 1, torch.device("cpu")), 0),
    ]
    assert len({tuple(draws) for draws in different}) == len(different)
    assert 0 <= derive_seed("a", 1) < 2**63


def test_generator_states_survive_a_round_trip():
    random.gauss(0, 1)  # leaves a second value behind
    legacy()
    state = rng_state()

    def draws():
        return [random.gauss(0, 1), random.random(), legacy(), torch.rand(()).item()]

    expected = draws()
    set_rng_state(state)
    assert draws() == expected
