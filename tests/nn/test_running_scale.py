"""The running scale: what it has seen it standardises, what is masked it never saw."""

from __future__ import annotations

import torch

from wamkit.nn.running_scale import RunningScale


def test_the_first_batches_are_averaged_exactly():
    values = torch.randn(60, 2, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 3.0, -2.0])
    scale = RunningScale(3)
    for part in values.split(20):
        scale.update(part, torch.ones(20, dtype=torch.bool))
    flat = values.flatten(0, 1)
    torch.testing.assert_close(scale.mean, flat.mean(dim=0))
    torch.testing.assert_close(scale.deviation, flat.std(dim=0, correction=0))
    standard = scale.standardise(flat)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale.restore(standard), flat, atol=1e-5, rtol=1e-5)


def test_it_follows_what_drifts():
    scale = RunningScale(1, memory=10)
    for step in range(200):
        scale.update(torch.full((4, 1, 1), float(step >= 100)) + torch.randn(4, 1, 1) * 0.01, torch.ones(4).bool())
    assert abs(scale.mean.item() - 1.0) < 0.02
    assert scale.deviation.item() < 0.1


def test_masked_samples_and_lone_values_are_not_seen():
    scale = RunningScale(1)
    valid = torch.tensor([True, False, True])
    scale.update(torch.tensor([[[1.0]], [[torch.nan]], [[3.0]]]), valid)
    assert (scale.mean.item(), scale.deviation.item()) == (2.0, 1.0)
    before = {name: value.clone() for name, value in scale.state_dict().items()}
    scale.update(torch.full((3, 1, 1), 9.0), torch.tensor([False, True, False]))
    assert all(torch.equal(value, before[name]) for name, value in scale.state_dict().items())
