"""The action probe: the share of steps that are read closely, against saying the mean; which actions lie in a step."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.evaluation.action_probe import action_probe, actions_of_steps
from wamkit.evaluation.probes import ProbeError, linear_probe, probe_with_errors


def data(noise: float, seed: int = 0):
    """Latents whose change is linear in the action, of 12 episodes."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (96, 2, 3))
    moved = actions @ rng.normal(size=(3, 6)) + noise * rng.normal(size=(96, 2, 6))
    latents = np.concatenate([rng.normal(size=(96, 1, 6)), np.zeros((96, 2, 6))], axis=1)
    latents[:, 1:] = latents[:, :1] + np.cumsum(moved, axis=1)
    return latents, actions, np.repeat(np.arange(12), 8)


def test_what_is_linear_is_read_and_what_is_noise_is_not():
    clear = action_probe(*data(0.001))
    assert clear["r2"] > 0.99
    assert clear["share_within"]["share"] > 0.95
    assert clear["share_within"]["mean_action"] < 0.05
    assert clear["share_within"]["mean_absolute_error"] < 0.01
    low, high = clear["share_within"]["ci95"]
    assert low <= clear["share_within"]["share"] <= high
    drowned = action_probe(*data(10.0))
    assert drowned["r2"] < 0.2
    assert drowned["share_within"]["share"] < 0.1
    assert action_probe(*data(0.001), tolerance=2.0)["share_within"]["share"] == 1.0


def test_errors_are_in_the_targets_own_units():
    latents, actions, episodes = data(0.3)
    inputs, targets = latents[:, 1] - latents[:, 0], actions[:, 0]
    result, errors = probe_with_errors(inputs, targets, episodes)
    assert result == linear_probe(inputs, targets, episodes)
    _, doubled = probe_with_errors(inputs, 2 * targets, episodes)
    np.testing.assert_allclose(doubled.probe, 2 * errors.probe, rtol=1e-6)
    by_target = 1 - (errors.probe**2).sum(0) / (errors.mean**2).sum(0)
    np.testing.assert_allclose(by_target, list(result.by_target.values()), rtol=1e-6)


def test_the_actions_of_a_step_are_those_that_take_effect_in_it():
    actions = np.arange(16.0).reshape(1, 16, 1)
    frames = np.arange(9)[None] * 0.1
    assert actions_of_steps(actions, np.arange(16)[None] / 20.0, frames).tolist() == [[[3.5], [11.5]]]
    assert actions_of_steps(actions, np.arange(16)[None] / 10.0, frames).tolist() == [[[1.5], [5.5]]]
    with pytest.raises(ProbeError, match="further apart"):
        actions_of_steps(actions[:, :1], np.zeros((1, 1)), frames)


def test_clips_without_a_step_are_refused():
    latents, actions, episodes = data(0.1)
    with pytest.raises(ProbeError, match="at least 5 pictures"):
        action_probe(latents[:, :1], actions[:, :0], episodes)
