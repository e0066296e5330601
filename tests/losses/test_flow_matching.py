"""One convention: noise level 0 is the data, 1 the noise; a velocity is named for where it points."""

from __future__ import annotations

import itertools

import pytest
import torch

from wamkit.losses import flow_matching as fm

CLEAN, NOISE = torch.randn(3, 4, 5), torch.randn(3, 4, 5)


def test_ends_of_the_path():
    assert torch.equal(fm.interpolate(CLEAN, NOISE, torch.zeros(3)), CLEAN)
    assert torch.equal(fm.interpolate(CLEAN, NOISE, torch.ones(3)), NOISE)


def test_directions_are_each_others_negative():
    assert torch.equal(fm.velocity_to_data(CLEAN, NOISE), -fm.velocity_to_noise(CLEAN, NOISE))


def test_following_either_velocity_comes_back():
    level = torch.tensor([0.2, 0.5, 0.9])
    there = fm.interpolate(CLEAN, NOISE, level)
    step = level[:, None, None]
    torch.testing.assert_close(there + step * fm.velocity_to_data(CLEAN, NOISE), CLEAN, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there + (1 - step) * fm.velocity_to_noise(CLEAN, NOISE), NOISE, rtol=1e-5, atol=1e-5)


def test_euler_with_the_true_velocity_ends_at_the_data():
    x, levels = NOISE, fm.euler_levels(10)
    for now, then in itertools.pairwise(levels):
        x = x + (now - then) * fm.velocity_to_data(CLEAN, NOISE)
    torch.testing.assert_close(x, CLEAN, rtol=1e-5, atol=1e-5)


def test_beta_levels_are_those_of_lawam():
    """T = 0.999 (1 - b), b ~ Beta(1.5, 1); s = 1 - t."""
    level = fm.beta_noise_level(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert level.min() >= 1 - 0.999
    assert level.max() <= 1
    assert level.mean() == pytest.approx(1 - 0.999 * (1 - 1.5 / 2.5), abs=2e-3)
    reference = torch.distributions.Beta(1.5, 1.0)
    torch.manual_seed(0)
    drawn = 1 - 0.999 * (1 - reference.sample((200_000,)))
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(
        level[:100_000].quantile(quantiles), drawn[:100_000].quantile(quantiles), rtol=0.02, atol=0
    )


def test_shifted_levels():
    assert fm.shifted_noise_level(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, 5 / 6, 1.0])
    assert fm.shifted_noise_level(torch.tensor([0.3]), shift=1.0).item() == pytest.approx(0.3)


def test_squared_error():
    torch.testing.assert_close(fm.squared_error(CLEAN, CLEAN + 2), torch.full_like(CLEAN, 4.0))
