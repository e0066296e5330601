"""The losses of a learned tokenizer: hinge, perceptual distance, alignment of time averages."""

from __future__ import annotations

import torch

from wamkit.losses.adversarial import critic_hinge, generator_hinge
from wamkit.losses.alignment import time_averaged_alignment
from wamkit.losses.perceptual import perceptual_distance


def test_hinge_by_hand():
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert critic_hinge(real, made).tolist() == [0.0, 0.75, 2.0]
    assert generator_hinge(made).tolist() == [3.0, 0.0, -1.0]


def test_alignment_compares_averages_over_time_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 3, 4, 5, generator=generator)
    targets = torch.randn(2, 7, 4, 5, generator=generator, requires_grad=True)
    value = time_averaged_alignment(projected.requires_grad_(), targets)
    expected = [(projected[i].mean(0) - targets[i].mean(0)).square().mean() for i in range(2)]
    torch.testing.assert_close(value, torch.stack(expected))
    torch.testing.assert_close(value, time_averaged_alignment(projected.flip(1), targets.flip(1)))
    value.sum().backward()
    assert targets.grad is None
    same = torch.ones(1, 2, 3, 4)
    assert time_averaged_alignment(same, same[:, :1]).item() == 0.0


def test_perceptual_distance_ignores_the_length_of_features():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 2, 2, generator=generator)]
    real = [torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 2, 2, generator=generator)]
    weights = [torch.tensor([1.0, 0.0, 2.0]), torch.ones(5)]
    distance = perceptual_distance(made, real, weights)
    torch.testing.assert_close(distance, perceptual_distance([3 * x for x in made], real, weights))
    torch.testing.assert_close(distance, perceptual_distance(real, made, weights))
    assert perceptual_distance(made, made, weights).abs().max() == 0
    unit = [[x / x.norm(dim=1, keepdim=True) for x in side] for side in (made, real)]
    first = ((unit[0][0] - unit[1][0]).square() * weights[0][:, None, None]).sum(1).mean((1, 2))
    second = (unit[0][1] - unit[1][1]).square().sum(1).mean((1, 2))
    torch.testing.assert_close(distance, first + second)


def test_a_place_without_features_has_a_finite_gradient():
    made = torch.zeros(1, 3, 2, 2, requires_grad=True)
    perceptual_distance([made], [torch.ones(1, 3, 2, 2)], [torch.ones(3)]).sum().backward()
    assert made.grad.isfinite().all()
