"""Linear probes on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.evaluation.probes import ProbeError, encoder_probe, grouped_folds, latent_action_probe, linear_probe


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_linear_map_is_found_and_noise_is_not(rng):
    inputs = rng.normal(size=(300, 12))
    targets = inputs @ rng.normal(size=(12, 3))
    episodes = np.repeat(np.arange(15), 20)
    result = linear_probe(inputs, targets, episodes, names=("x", "y", "z"))
    assert result.r2 > 0.999
    assert abs(result.control) < 0.1
    assert set(result.by_target) == {"x", "y", "z"}
    assert (result.n_train, result.n_test, result.episodes, result.folds) == (240, 300, 15, 5)
    nothing = linear_probe(rng.normal(size=(300, 12)), targets, episodes)
    assert -0.2 < nothing.r2 < 0.1


def test_r2_is_the_explained_share(rng):
    signal, noise = 0.5 * rng.normal(size=(2000, 4)), 0.5 * rng.normal(size=(2000, 1))
    target = signal[:, :1] + noise  # half the variance can be explained
    result = linear_probe(signal, target, np.repeat(np.arange(40), 50))
    assert result.r2 == pytest.approx(0.5, abs=0.05)
    assert result.ci95[0] < 0.5 < result.ci95[1]


def test_matches_least_squares_of_numpy(rng):
    inputs, target = rng.normal(size=(60, 3)), rng.normal(size=(60, 1))
    episodes = np.repeat(np.arange(2), 30)
    expected_error, expected_deviation = 0.0, 0.0
    for test in (0, 1):
        fit, check = episodes != test, episodes == test
        design = np.c_[inputs[fit], np.ones(30)]
        weights = np.linalg.lstsq(design, target[fit], rcond=None)[0]
        expected_error += ((np.c_[inputs[check], np.ones(30)] @ weights - target[check]) ** 2).sum()
        expected_deviation += ((target[fit].mean() - target[check]) ** 2).sum()
    # One training episode a fold leaves no inner split, so the penalty is the middle one, 1e-2.
    result = linear_probe(inputs, target, episodes)
    assert result.r2 == pytest.approx(1 - expected_error / expected_deviation, abs=0.01)


def test_an_episode_offset_cannot_be_recognised(rng):
    # The inputs identify the episode, and the target is constant within one: a split by frame would score 1.
    episodes = np.repeat(np.arange(10), 30)
    inputs = np.eye(10)[episodes] + 0.01 * rng.normal(size=(300, 10))
    target = rng.normal(size=10)[episodes][:, None]
    assert linear_probe(inputs, target, episodes).r2 < 0.1


def test_more_features_than_samples(rng):
    where = rng.uniform(size=(200, 2))
    features = np.exp(-((np.linspace(0, 1, 16)[None, :, None] - where[:, None, :1]) ** 2) / 0.02) * rng.normal(size=32)
    episodes = np.repeat(np.arange(20), 10)
    result = encoder_probe(features, {"end_effector": where[:, :1], "elsewhere": where[:, 1:]}, episodes)
    assert result["end_effector"]["r2"] > 0.95
    assert result["elsewhere"]["r2"] < 0.1


def test_latent_action_probe_flattens_and_leaves_out_constant_dimensions(rng):
    latent = rng.normal(size=(100, 2, 4))
    motion = np.c_[latent[:, 0, :2] * 0.01, np.full(100, 3.0)]
    result = latent_action_probe(latent, motion, np.arange(100) // 10, names=("dx", "dy", "gripper"))
    assert result["r2"] > 0.99
    assert result["constant_targets"] == ["gripper"]


def test_folds_never_share_an_episode(rng):
    episodes = rng.integers(0, 7, size=100)
    seen = np.zeros(100, int)
    for train, test in grouped_folds(episodes, 5, rng):
        assert not set(episodes[train]) & set(episodes[test])
        seen[test] += 1
    assert (seen == 1).all()


def test_refusals(rng):
    x, y, episodes = rng.normal(size=(20, 3)), rng.normal(size=(20, 1)), np.repeat([0, 1], 10)
    with pytest.raises(ProbeError, match="not finite"):
        linear_probe(np.where(x > 2, np.nan, x) * np.inf, y, episodes)
    with pytest.raises(ProbeError, match="two held-out episodes"):
        linear_probe(x, y, np.zeros(20, int))
    with pytest.raises(ProbeError, match="never change"):
        linear_probe(x, np.ones((20, 1)), episodes)
    with pytest.raises(ProbeError, match="one name for each"):
        linear_probe(x, y, episodes, names=("a", "b"))
    with pytest.raises(ProbeError, match=r"inputs \[n, P\]"):
        linear_probe(x[:5], y, episodes)
