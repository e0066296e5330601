"""Muon against its definition, torch's own, and what it is there for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from toy_training import ToyConfig, ToyModel, toy_config

from wamkit.training.muon import Muon, linear_matrices, orthogonalized
from wamkit.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16), (1, 32, 32)])
def test_steps_are_nearly_orthogonal_and_keep_the_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrices)
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values.median() > 0.65
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    # In the basis of the singular vectors the step is diagonal.
    inner = left.mT @ found @ right.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-4)


def test_a_step_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(64, 96, bias=False), nn.Linear(64, 96, bias=False)
    theirs.load_state_dict(ours.state_dict())
    one = Muon([{"params": [ours.weight], "muon": True, "weight_decay": 0.1}], lr=1e-2)
    other = torch.optim.Muon(
        [theirs.weight], lr=1e-2, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    before = ours.weight.detach().clone()
    for _ in range(3):
        gradient = torch.randn(96, 64)
        ours.weight.grad, theirs.weight.grad = gradient, gradient.clone()
        one.step()
        other.step()
    # torch's works in bfloat16.
    change, expected = ours.weight - before, theirs.weight - before
    assert nn.functional.cosine_similarity(change.flatten(), expected.flatten(), dim=0) > 0.999
    torch.testing.assert_close(change.norm(), expected.norm(), rtol=0.02, atol=0)


def test_only_linear_matrices_are_taken_and_the_state_survives(tmp_path):
    model = ToyModel(ToyConfig())
    model.prepare_stage("world")
    stage = dataclasses.replace(toy_config(tmp_path).stages[0], optimizer="muon")
    groups = model.parameter_groups("world")
    optimizer = build_optimizer(model, groups, stage)
    taken = {name for group in optimizer.param_groups if group["muon"] for name in group["names"]}
    matrices = linear_matrices(model)
    assert taken == {name for name, p in model.named_parameters() if p.requires_grad and p in matrices}
    assert taken
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    stored = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    kinds = {name.rsplit("/", 1)[1] for name in stored}
    assert kinds == {"momentum", "step", "exp_avg", "exp_avg_sq"}
    again = build_optimizer(model, groups, stage)
    load_optimizer_tensors(again, stored)
    returned = optimizer_tensors(again)
    assert stored.keys() == returned.keys()
    assert all(torch.equal(stored[name], returned[name]) for name in stored)
