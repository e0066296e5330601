"""Losses against reference values, and what masks keep out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from wamkit.losses.latent_action import distillation, kl_to_standard_normal
from wamkit.losses.reconstruction import reconstruction
from wamkit.losses.reduction import masked_mean, sample_mean
from wamkit.losses.sigreg import random_directions, sigreg


@pytest.mark.parametrize(
    ("kind", "near", "far"), [("squared", 0.0025, 4.0), ("l1", 0.05, 2.0), ("smooth_l1", 0.0125, 1.95)]
)
def test_reconstruction(kind, near, far):
    error = reconstruction(torch.tensor([0.05, -2.0]), torch.zeros(2), kind)
    assert error.tolist() == pytest.approx([near, far])


def test_kl_equals_torchs():
    mean, log_variance = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    reference = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(-1).mean(-1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), reference)
    assert kl_to_standard_normal(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0


def test_distillation_pulls_the_student_alone():
    student, teacher = torch.randn(2, 1, 4, requires_grad=True), torch.randn(2, 1, 4, requires_grad=True)
    value = distillation(student, teacher)
    torch.testing.assert_close(value, (student - teacher).square().mean(dim=(1, 2)))
    value.sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_masked_elements_reach_neither_value_nor_gradient():
    values = torch.tensor([[1.0, math.nan], [math.inf, math.nan]], requires_grad=True)
    mean, valid = masked_mean(values, torch.tensor([[True, False], [False, False]]))
    assert mean.tolist() == [1.0, 0.0]
    assert valid.tolist() == [True, False]
    mean.sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_sample_mean():
    assert sample_mean(torch.arange(8.0).view(2, 2, 2)).tolist() == [1.5, 5.5]


def test_sigreg_tells_a_gaussian_from_a_collapse():
    generator = torch.Generator().manual_seed(0)
    directions = random_directions(16, 64, device="cpu", generator=generator)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(64))
    gaussian = torch.randn(4096, 16, generator=generator)
    point = torch.zeros(4096, 16)
    line = gaussian[:, :1].expand(-1, 16)
    scaled = gaussian * 2.0
    # Per sample: what is left for a Gaussian is the noise of a finite sample.
    good = sigreg(gaussian, directions).mean() / 4096
    assert good < 1e-3
    for bad in (point, line, scaled):
        assert sigreg(bad, directions).mean() / 4096 > 50 * good


def test_sigreg_reference_value():
    """All embeddings at 0: the integral of (1 - exp(-t^2/2))^2 exp(-t^2/2) over [-3, 3], times the samples."""
    frequency = torch.linspace(-3.0, 3.0, 20_001, dtype=torch.float64)
    bell = torch.exp(-0.5 * frequency.square())
    integral = torch.trapezoid((1 - bell).square() * bell, frequency)
    value = sigreg(torch.zeros(10, 4), torch.eye(4)[:, :1], knots=401)
    assert value.item() == pytest.approx(10 * integral.item(), rel=1e-4)
