"""Future video: levels, loss and sampler."""

from __future__ import annotations

import pytest
import torch

from wamkit.dynamics.video_flow import (
    future_loss,
    latent_frame_valid,
    levels_of_frames,
    noisy_video,
    sample_future,
)
from wamkit.losses.flow_matching import bell_weight, shifted_euler_levels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CLEAN, NOISE = (torch.randn(2, 3, 3, 2, 2, generator=seeded(i)) for i in range(2))


def test_the_present_stays_clean():
    levels = levels_of_frames(torch.tensor([0.5, 1.0]), 3)
    assert levels.tolist() == [[0.0, 0.5, 0.5], [0.0, 1.0, 1.0]]
    noisy = noisy_video(CLEAN, NOISE, levels)
    assert torch.equal(noisy[:, :, 0], CLEAN[:, :, 0])
    torch.testing.assert_close(noisy[0, :, 1:], 0.5 * (CLEAN + NOISE)[0, :, 1:])
    assert torch.equal(noisy[1, :, 1:], NOISE[1, :, 1:])


def test_the_loss_counts_real_future_frames_alone():
    level, valid = torch.tensor([0.5, 0.5]), torch.tensor([[True, True, False], [True, False, False]])
    predicted = (NOISE - CLEAN).clone()
    predicted[:, :, 0] += 100.0  # the present is no part of it
    predicted[:, :, 2] += 100.0  # nor is what was not recorded
    predicted[:, :, 1] += 2.0
    value, has_any = future_loss(predicted, CLEAN, NOISE, level, valid, shift=5.0)
    assert has_any.tolist() == [True, False]
    assert value[0].item() == pytest.approx(4.0 * bell_weight(torch.tensor(0.5)).item(), rel=1e-5)


def test_which_latent_frames_are_real():
    valid = torch.tensor([[True] * 9, [True] * 6 + [False] * 3, [True] + [False] * 8])
    assert latent_frame_valid(valid).tolist() == [[True, True, True], [True, True, True], [True, False, False]]


def test_the_sampler_finds_a_known_end():
    """With the exact velocity of one data point, Euler steps end on it, and the present is never moved."""
    goal = CLEAN

    def velocity(x, levels):
        return (x - goal) / levels[:, None, :, None, None].clamp(min=1e-6)

    made = sample_future(velocity, goal[:, :, :1], NOISE, steps=7, shift=5.0)
    torch.testing.assert_close(made, goal, rtol=1e-4, atol=1e-4)


def test_shifted_levels_and_the_weight():
    levels = shifted_euler_levels(4)
    assert levels[0] == 1.0
    assert levels[-1] == 0.0
    assert levels[2].item() == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    grid = shifted_euler_levels(1000)[:-1]
    weights = bell_weight(grid)
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-4)
    assert weights.min().item() == pytest.approx(0.0, abs=1e-4)
    assert bell_weight(torch.tensor(0.5)) == bell_weight(torch.linspace(0, 1, 101)).max()
