"""In-painting against what can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from wamkit.actions.flow_field import guidance_weight, inpainting, integrate, soft_mask
from wamkit.losses.flow_matching import euler_levels

STEPS = 50
LEVELS = euler_levels(STEPS).tolist()


def gaussian_field(covariance: torch.Tensor):
    """The exact velocity for chunks [K, 1] drawn from N(0, covariance): E[x - e | x_s], all of it linear."""
    identity = torch.eye(len(covariance))

    def field(x: torch.Tensor, step: int) -> torch.Tensor:
        s = LEVELS[step]
        seen = (1 - s) ** 2 * covariance + s**2 * identity
        gain = ((1 - s) * covariance - s * identity) @ torch.linalg.inv(seen)
        return gain @ x

    return field


def test_the_soft_mask_is_the_papers():
    weights = soft_mask(overlap=8, delay=4, length=12)
    assert weights[:4].tolist() == [1.0] * 4
    c = 4 / 5
    assert weights[4].item() == pytest.approx(c * (math.exp(c) - 1) / (math.e - 1), rel=1e-6)
    assert (weights[4:8].diff() < 0).all()
    assert (weights[4:8] > 0).all()
    assert weights[8:].tolist() == [0.0] * 4
    assert soft_mask(overlap=3, delay=3, length=5).tolist() == [1, 1, 1, 0, 0]
    assert soft_mask(overlap=0, delay=0, length=4).tolist() == [0] * 4


def test_the_guidance_weight_is_the_papers():
    assert guidance_weight(1.0) == 5.0  # infinite at pure noise, but for the bound
    assert guidance_weight(0.5) == pytest.approx(2.0)
    tau = 0.3
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    assert guidance_weight(1 - tau, 100.0) == pytest.approx((1 - tau) / (tau * r2))


def test_the_correction_is_the_vector_jacobian_product():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator)

    def field(x, step):
        return torch.tanh(x.flatten(1) @ matrix.T).view_as(x)

    x, known = torch.randn(1, 3, 2, generator=generator), torch.randn(1, 3, 2, generator=generator)
    weights = torch.rand(1, 3, 2, generator=generator)
    step = 20
    level = LEVELS[step]

    def finished(flat):
        return flat + level * torch.tanh(flat @ matrix.T)

    jacobian = torch.autograd.functional.jacobian(finished, x.flatten())
    error = (weights * (known - finished(x.flatten()).view_as(x))).flatten()
    wanted = field(x, step) + guidance_weight(level) * (jacobian.T @ error).view_as(x)
    torch.testing.assert_close(inpainting(field, known, weights, LEVELS)(x, step), wanted)


def test_without_weight_nothing_changes():
    field, noise = gaussian_field(torch.eye(4)), torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(1))
    guided = inpainting(field, torch.full_like(noise, 9.0), torch.zeros_like(noise), LEVELS)
    assert torch.equal(integrate(guided, noise, STEPS), integrate(field, noise, STEPS))


def test_known_actions_are_taken_up_and_independent_ones_left_alone():
    field, noise = gaussian_field(torch.eye(4)), torch.randn(64, 4, 1, generator=torch.Generator().manual_seed(1))
    known, weights = torch.full_like(noise, 0.7), torch.zeros_like(noise)
    weights[:, :2] = 1.0
    chunk = integrate(inpainting(field, known, weights, LEVELS), noise, STEPS)
    free = integrate(field, noise, STEPS)
    assert (chunk[:, :2] - 0.7).abs().mean() < 0.25 * (free[:, :2] - 0.7).abs().mean()
    torch.testing.assert_close(chunk[:, 2:], free[:, 2:])


def test_what_hangs_together_follows():
    """Chunks that are nearly constant: guiding the first two actions moves the others along."""
    covariance = 0.99 * torch.ones(4, 4) + 0.01 * torch.eye(4)
    field, noise = gaussian_field(covariance), torch.randn(64, 4, 1, generator=torch.Generator().manual_seed(1))
    weights = torch.zeros_like(noise)
    weights[:, :2] = 1.0
    chunk = integrate(inpainting(field, torch.full_like(noise, 0.7), weights, LEVELS), noise, STEPS)
    assert (chunk[:, 2:] - 0.7).abs().mean() < 0.3 * (integrate(field, noise, STEPS)[:, 2:] - 0.7).abs().mean()


def test_a_long_step_ends_at_what_is_known_and_not_beyond():
    noise, known = torch.randn(2, 2, 3, 1, generator=torch.Generator().manual_seed(1)), torch.full((2, 2, 3, 1), 0.7)
    guided = inpainting(lambda x, step: 0.0 * x, known, torch.ones_like(known), [1.0, 0.1, 0.0])
    torch.testing.assert_close(noise + 0.9 * guided(noise, 0), known)


def test_it_needs_no_graph_around_it():
    field = gaussian_field(torch.eye(3))
    with torch.no_grad():
        guided = inpainting(field, torch.ones(1, 3, 1), torch.ones(1, 3, 1), LEVELS)(torch.zeros(1, 3, 1), 25)
    assert not guided.requires_grad
    assert (guided > 0).all()
