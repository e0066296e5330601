"""Fast-WAM whole: masks, modes, what reaches what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_video import FAST, fast
from micro_weights import other_future, seeded

from wamkit.models.base import StageError
from wamkit.models.fast_wam import FastWAM, preset

GOLDEN = {
    "uncond": {"video": 2.458304, "action": 3.191942},
    "joint": {"video": 2.458304, "action": 3.211993},
    "idm": {"video": 2.458304, "action": 3.18805},
}


@pytest.fixture(scope="module")
def model() -> FastWAM:
    return fast()


@pytest.mark.parametrize("mode", list(GOLDEN))
def test_golden_numbers(mode):
    model = fast(mode=mode)
    model.prepare_stage("policy")
    losses = model.loss(model.fake_window(2), "policy", seeded())
    assert {name: value.item() for name, value in losses.scalars().items()} == pytest.approx(GOLDEN[mode], rel=1e-4)


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = FastWAM(FAST)
    model.prepare_stage("policy")
    window = model.fake_window(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for step in range(25):
        losses = model.loss(window, "policy", seeded(step % 2))
        values.append({k: v.item() for k, v in losses.scalars().items()})
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    assert values[-1]["action"] < 0.8 * values[0]["action"]
    assert values[-1]["video"] < 0.9 * values[0]["video"]


# Masks


def test_the_published_masks(model):
    valid = torch.tensor([[True, True, False]])
    grid = (2, 1, 2)  # two frames of two tokens
    uncond = model.attention_mask(grid, valid, "uncond")[0, 0].int().tolist()
    assert uncond == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
    ]
    joint = model.attention_mask(grid, valid, "joint")[0, 0].int().tolist()
    assert joint[:4] == uncond[:4]
    assert joint[4] == [1, 1, 1, 1, 1, 1, 0]
    idm = model.attention_mask(grid, valid, "idm")[0, 0].int()
    assert idm[:4, :4].tolist() == idm[4:8, 4:8].tolist() == [row[:4] for row in uncond[:4]]
    assert idm[:4, 4:].sum() == idm[4:8, :4].sum() == 0
    assert idm[8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("mode", list(GOLDEN))
def test_future_frames_reach_actions_only_where_the_mode_says(mode):
    model = fast(mode=mode)
    window = model.fake_window(2)
    first, second = (model.loss(w, "policy", seeded()).terms for w in (window, other_future(window)))
    assert torch.equal(first["action"].value, second["action"].value) is (mode == "uncond")
    assert not torch.equal(first["video"].value, second["video"].value)


def test_video_never_sees_actions(model):
    window = model.fake_window(2)
    first, second = (
        model.loss(w, "policy", seeded()).terms["video"].value
        for w in (window, replace(window, actions=-window.actions))
    )
    assert torch.equal(first, second)


def test_padded_actions_have_no_say(model):
    window = model.fake_window(2)
    assert not window.action_valid.all()
    junk = replace(window, actions=torch.where(window.action_valid, window.actions, 1e6))
    first, second = (model.loss(w, "policy", seeded()).terms["action"].value for w in (window, junk))
    assert torch.equal(first, second)


# Modes of one set of weights


def test_three_modes_of_one_set_of_weights(model):
    model.eval()
    observation = model.fake_window(2).observation()
    noise = torch.randn(2, 8, 6, generator=seeded())
    chunks = {mode: model.act(observation, noise=noise, mode=mode).actions for mode in GOLDEN}
    assert all(chunk.isfinite().all() for chunk in chunks.values())
    assert not torch.allclose(chunks["uncond"], chunks["joint"])
    assert not torch.allclose(chunks["uncond"], chunks["idm"])
    assert torch.equal(chunks["uncond"], model.act(observation, noise=noise).actions)


def test_the_prefix_computed_once_equals_the_joint_pass(model):
    """One Euler step by the cached prefix and by the whole mixture, on the same noisy actions."""
    from wamkit.dynamics.mixture_of_transformers import after_prefix, joint, prefill
    from wamkit.dynamics.video_dit import first_frame_causal

    model.eval()
    latents, _ = model.latents_of(model.fake_window(2))
    words, words_valid = model.words_of(("open", "close"), torch.ones(2, 6))
    noisy, level = torch.randn(2, 8, 6, generator=seeded()), torch.tensor([0.9, 0.4])
    chunk_valid = torch.arange(8)[None] < torch.tensor([[8], [5]])
    with torch.no_grad():
        grid = model.backbone.grid(latents)
        video, _ = model.backbone.prepare(latents, torch.tensor([[0.0, 0.6]]).expand(2, -1), words, words_valid)
        actions = model.action.prepare(noisy, level, model.action.words_in(words), words_valid)
        mask = model.attention_mask(grid, chunk_valid, "uncond")
        _, whole = joint([model.backbone.blocks, model.action.blocks], [video, actions], mask)

        present = latents[:, :, :1]
        alone, _ = model.backbone.prepare(present, torch.zeros(2, 1), words, words_valid)
        tokens = alone.tokens.shape[1]
        _, prefix = prefill(model.backbone.blocks, alone, first_frame_causal(1, tokens, "cpu"))
        seen = torch.cat([torch.ones(2, tokens, dtype=torch.bool), chunk_valid], dim=1)[:, None, None, :]
        cached = after_prefix(model.action.blocks, actions, prefix, seen.expand(-1, 1, 8, -1))
    torch.testing.assert_close(whole, cached, rtol=1e-5, atol=1e-6)


def test_a_cached_prefix_is_computed_once(model, monkeypatch):
    model.eval()
    calls = []
    original = model.backbone.prepare
    monkeypatch.setattr(model.backbone, "prepare", lambda *a, **k: calls.append(1) or original(*a, **k))
    model.act(model.fake_window(1).observation(), noise=torch.zeros(1, 8, 6))
    assert len(calls) == 1


def test_without_video_supervision_only_what_the_actions_read_is_trained():
    model = fast(video_supervision="none")
    model.prepare_stage("policy")
    losses = model.loss(model.fake_window(2), "policy", seeded())
    assert set(losses) == {"action"}
    losses.total().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_imagine_takes_no_actions(model):
    with pytest.raises(StageError, match="takes no actions"):
        model.imagine(model.fake_window(1).observation(), torch.zeros(1, 8, 6))


def test_the_action_expert_may_start_from_the_video_expert(model):
    """A start by interpolation keeps constants, and matrices of equal size as they are but for their scale."""
    other = fast()
    with torch.no_grad():
        for parameter in other.backbone.blocks.parameters():
            parameter.fill_(0.5)
    other.action.start_from(other.backbone)
    block = other.action.blocks[0]
    assert torch.allclose(block.scale_shift_table, torch.tensor(0.5))
    assert torch.allclose(block.attn1.norm_q.weight, torch.tensor(0.5))
    assert torch.allclose(block.attn1.to_q.weight, torch.tensor(0.5 * (24 / 16) ** 0.5))
    assert torch.allclose(block.attn1.to_out[0].weight, torch.tensor(0.5))


# Sizes


def test_parameter_counts_of_the_published_model():
    """papers.md 2.7 and 4: 6.73 B loaded, 6.02 B trained, an action expert of about 1 B."""
    with torch.device("meta"):
        model = FastWAM(preset("paper"))
    model.prepare_stage("policy")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 6_020_710_599
    assert sum(p.numel() for p in model.parameters()) == 6_725_399_267
    assert sum(p.numel() for p in model.action.parameters()) == pytest.approx(1.0e9, rel=0.1)
    assert [model.latent_frames, *model.latent_size] == [3, 14, 28]


@pytest.mark.parametrize("mode", ["uncond", "idm"])
def test_inpainting_agrees_with_what_is_known(mode):
    model = fast(mode=mode).eval()
    observation = model.fake_window(2).observation()
    noise = torch.randn(2, 8, 6, generator=seeded())
    own = model.act(observation, noise=noise).actions
    known, weights = own + 1.0, torch.zeros(2, 8, 6)
    assert torch.allclose(model.inpaint(observation, known, weights, noise=noise).actions, own, atol=1e-5)
    weights[:, :4] = 1.0
    guided = model.inpaint(observation, known, weights, noise=noise).actions
    assert (guided - known)[:, :4].abs().mean() < 0.5 * (own - known)[:, :4].abs().mean()


def test_the_joint_mode_cannot_inpaint():
    model = fast(mode="joint")
    with pytest.raises(StageError, match="cannot in-paint"):
        model.inpaint(model.fake_window(1).observation(), torch.zeros(1, 8, 6), torch.zeros(1, 8, 6))
