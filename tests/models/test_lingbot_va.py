"""LingBot-VA's own: stages, sizes, both kinds of action tokens, golden numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import LINGBOT, OWN, lingbot
from micro_weights import gradient, seeded

from wamkit.models.lingbot_va import LingBotVA, preset

GOLDEN = {
    "vae": {"pixels": 0.528033, "kl": 0.010678},
    "pretrain": {"video": 3.179045, "action": 5.234641, "inverse": 5.200285, "copy_previous": 1.352562},
    "adapt": {"video": 3.179045, "action": 5.234641, "inverse": 5.200285, "copy_previous": 1.352562},
}


def test_golden_numbers():
    model = lingbot()
    for stage, values in GOLDEN.items():
        model.prepare_stage(stage)
        found = model.loss(model.fake_window(2), stage, seeded()).scalars()
        assert {name: value.item() for name, value in found.items()} == pytest.approx(values, rel=1e-4), stage
    assert tuple(GOLDEN) == model.stages


def test_the_released_transformer_has_one_backbone_of_five_billion():
    config = preset("paper")
    with torch.device("meta"):
        model = LingBotVA(config)
    assert model.stages == ("pretrain", "adapt")
    blocks = model.transformer.actions.blocks_beside(model.transformer.video)
    assert blocks is model.transformer.video.blocks
    count = sum(p.numel() for p in model.transformer.parameters())
    assert count / 1e9 == pytest.approx(5.0, rel=0.03)


def test_an_expert_of_its_own_starts_from_the_video_expert():
    model = LingBotVA(replace(LINGBOT, action=OWN))
    own = model.transformer.actions.blocks[0].attn1.to_q.weight
    before = own.clone()
    model.transformer.actions.start_from(model.transformer.video)
    assert not torch.equal(own, before)
    model.prepare_stage("adapt")
    losses = model.loss(model.fake_window(2), "adapt", seeded())
    losses.total().backward()
    assert gradient(model.transformer.actions) > 0
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.eval().act(model.fake_window(2).observation(), generator=seeded()).actions.isfinite().all()


def test_noisy_history_is_told_to_the_blocks():
    """With the history's noise drawn for every sample the losses change, and its level reaches the tokens."""
    window = lingbot().fake_window(2)
    values = [lingbot(noisy_history=share).loss(window, "adapt", seeded()).terms["video"].value for share in (1.0, 0.0)]
    assert not torch.allclose(*values)
