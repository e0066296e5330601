"""Fast-WAM's action expert: where actions enter and leave, and its start from the video expert."""

from __future__ import annotations

import pytest
import torch

from wamkit.actions.action_dit import ActionDiT, ActionDiTConfig, _interpolated


@pytest.fixture(scope="module")
def expert() -> ActionDiT:
    torch.manual_seed(0)
    return ActionDiT(
        ActionDiTConfig(action_dim=3, width=16, mlp_width=24, time_width=8),
        heads=2,
        head_width=12,
        layers=2,
        text_width=10,
    )


@torch.no_grad()
def test_before_and_after_the_blocks(expert):
    words = expert.words_in(torch.randn(2, 5, 10))
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    stream = expert.prepare(torch.randn(2, 4, 3), torch.tensor([0.2, 1.0]), words, valid)
    assert stream.tokens.shape == (2, 4, 16)
    assert stream.time.shape == (2, 1, 6, 16)
    assert stream.words_mask.shape == (2, 1, 1, 5)
    assert expert.velocity(stream.tokens).shape == (2, 4, 3)


def test_the_noise_level_and_the_steps_number_are_told(expert):
    words = expert.words_in(torch.zeros(2, 1, 10))
    stream = expert.prepare(torch.zeros(2, 4, 3), torch.tensor([0.2, 0.8]), words)
    assert not torch.allclose(stream.time[0], stream.time[1])
    rotary = expert.rotary(4, "cpu")
    assert rotary.cosines.shape == (4, 6)
    assert rotary.cosines[0].tolist() == [1.0] * 6
    assert rotary.sines[1, 0].item() == pytest.approx(torch.tensor(1.0).sin().item())


def test_interpolation():
    line = torch.linspace(0, 1, 9)
    torch.testing.assert_close(_interpolated(line, torch.Size([5])), torch.linspace(0, 1, 5))
    plane = line[:, None] + 2 * line[None, :7]
    smaller = _interpolated(plane, torch.Size([3, 4]))
    assert smaller.shape == (3, 4)
    torch.testing.assert_close(smaller[:, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(_interpolated(plane, plane.shape), plane)
