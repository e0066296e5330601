"""LaWAM whole: what it learns, what reaches what, and what must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_lawam import LAWAM, lawam
from micro_weights import gradient, other_future, seeded

from wamkit.configuration import from_dict, to_dict
from wamkit.dynamics.frame_reading import AttentionPooling
from wamkit.dynamics.linear_transition import LinearTransitionConfig
from wamkit.models.base import StageError
from wamkit.models.lawam import LaWAM, LaWAMConfig, preset
from wamkit.types import Window


def with_embodiments(window: Window, *ids: int) -> Window:
    return replace(window, embodiment=torch.tensor(ids))


# Golden numbers: an equal sum of a fixed computation, whoever changes a module.

GOLDEN = {
    "encoder": {"hidden_patches": 0.639192, "visible_patches": 0.075991},
    "latent_action": {"reconstruction": 1.771027, "kl": 1.869862, "state": 3.152552, "copy_present": 1.658759},
    "policy": {"distillation": 1.642815, "subgoal": 1.754842, "action": 2.332598},
}


@pytest.mark.parametrize("stage", list(GOLDEN))
def test_golden_numbers(stage):
    model = lawam(dual_view=False)
    model.prepare_stage(stage)
    losses = model.loss(model.fake_window(2, stage=stage), stage, seeded())
    assert {name: value.item() for name, value in losses.scalars().items()} == pytest.approx(GOLDEN[stage], rel=1e-4)


# Learning


def overfit(model: LaWAM, stage: str, steps: int, lr: float) -> tuple[dict, dict]:
    model.config = replace(model.config, dual_view=False)  # new views at every step are not learned by heart
    model.prepare_stage(stage)
    window = model.fake_window(2, stage=stage)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    first = None
    for step in range(steps):
        # A few fixed noises in turn: one batch can be learned by heart, one noise as well.
        losses = model.loss(window, stage, seeded(step % 4))
        first = first or {k: v.item() for k, v in losses.scalars().items()}
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    return first, {k: v.item() for k, v in losses.scalars().items()}


def test_overfits_one_batch_in_stage_latent_action():
    torch.manual_seed(0)
    first, last = overfit(LaWAM(LAWAM), "latent_action", 60, 5e-3)
    assert last["reconstruction"] < 0.25 * first["reconstruction"]
    assert last["reconstruction"] < 0.5 * last["copy_present"]


def test_overfits_one_batch_in_stage_policy():
    torch.manual_seed(0)
    first, last = overfit(LaWAM(LAWAM), "policy", 80, 5e-3)
    assert last["action"] < 0.25 * first["action"]
    assert last["distillation"] < 0.1 * first["distillation"]
    assert last["subgoal"] < first["subgoal"]


# What reaches what


def test_future_frames_reach_no_action():
    model = lawam().eval()
    window = model.fake_window(2)
    changed = other_future(window)
    assert torch.equal(
        model.act(window.observation(), generator=seeded()).actions,
        model.act(changed.observation(), generator=seeded()).actions,
    )
    model.prepare_stage("policy")
    first, second = (model.loss(w, "policy", seeded()).terms for w in (window, changed))
    assert torch.equal(first["action"].value, second["action"].value)
    assert not torch.equal(first["subgoal"].value, second["subgoal"].value)
    assert not torch.equal(first["distillation"].value, second["distillation"].value)


@pytest.mark.parametrize("subgoal", ["insulated", "coupled"])
def test_knowledge_insulation(subgoal):
    model = lawam(subgoal=subgoal)
    model.prepare_stage("policy")
    model.loss(model.fake_window(2), "policy", seeded()).terms["action"].mean().backward()
    assert gradient(model.flow) > 0
    assert gradient(model.vlm) > 0
    for part in (model.lam.decoder, model.latent_head):
        assert (gradient(part) == 0) is (subgoal == "insulated")


def test_the_subgoal_loss_trains_latent_head_and_lawm():
    model = lawam()
    model.prepare_stage("policy")
    model.loss(model.fake_window(2), "policy", seeded()).terms["subgoal"].mean().backward()
    assert gradient(model.lam.decoder) > 0
    assert gradient(model.latent_head) > 0
    assert gradient(model.flow) == 0


def test_the_teacher_gets_no_gradient_even_unfrozen():
    model = lawam()
    model.requires_grad_(True)
    model.loss(model.fake_window(2), "policy", seeded()).terms["distillation"].mean().backward()
    assert gradient(model.latent_head) > 0
    assert gradient(model.lam, model.vision_encoder) == 0


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("encoder", ["vision_encoder"]),
        ("latent_action", ["lam"]),
        ("policy", ["vlm", "flow", "latent_head", "lam.decoder"]),
    ],
)
def test_frozen_parts_stay_frozen(stage, trained):
    model = lawam()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.prepare_stage(stage)
    groups = [{"params": group["params"]} for group in model.parameter_groups(stage)]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1)
    model.loss(model.fake_window(2, stage=stage), stage, seeded()).total().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) is not name.startswith(tuple(f"{part}." for part in trained)), name
    for name, module in model.named_modules():
        if name.startswith(("lam.encoder", "lam.posterior", "vision_encoder")) and stage == "policy":
            assert not module.training, name


def test_pretrained_token_embeddings_stay_frozen():
    model = lawam(vlm=replace(LAWAM.vlm, freeze_token_embeddings=True))
    model.prepare_stage("policy")
    assert not model.vlm.model.language_model.embed_tokens.weight.requires_grad


def test_learning_rates_of_expert_and_trunk():
    model = lawam()
    model.prepare_stage("policy")
    scales = {group["name"]: group["lr_scale"] for group in model.parameter_groups("policy")}
    assert scales == {
        "expert_matrices": 1.0,
        "trunk_matrices": 0.3,
        "expert_biases_and_norms": 1.0,
        "trunk_biases_and_norms": 0.3,
    }


# Mixed data


def test_human_video_has_no_action_and_no_state_loss():
    model = lawam()
    window = with_embodiments(model.fake_window(2), 0, 1)
    state = model.loss(window, "latent_action", seeded()).terms
    assert state["state"].valid.tolist() == [False, True]
    assert state["reconstruction"].valid.tolist() == [True, True]
    policy = model.loss(window, "policy", seeded()).terms
    assert policy["action"].valid.tolist() == [False, True]
    assert policy["distillation"].valid.tolist() == [True, True]


def test_windows_without_actions_or_state_train_the_latent_action():
    model = lawam()
    model.prepare_stage("latent_action")
    window = model.fake_window(2)
    window = replace(
        window,
        action_valid=torch.zeros_like(window.action_valid),
        actions=torch.full_like(window.actions, torch.nan),
        state_valid=torch.zeros_like(window.state_valid),
        state=torch.full_like(window.state, torch.nan),
    )
    losses = model.loss(window, "latent_action", seeded())
    assert not losses.terms["state"].valid.any()
    losses.total().backward()
    for part in (model.lam.encoder, model.lam.posterior, model.lam.decoder):
        assert 0 < gradient(part) < float("inf")
    assert gradient(model.lam.state_predictor) == 0


def test_a_window_past_its_episode_teaches_no_subgoal():
    model = lawam()
    window = model.fake_window(2)
    valid = {camera: flags.clone() for camera, flags in window.frame_valid.items()}
    valid["front"][0, -1] = False
    terms = model.loss(replace(window, frame_valid=valid), "policy", seeded()).terms
    assert terms["subgoal"].valid.tolist() == terms["distillation"].valid.tolist() == [False, True]
    assert terms["action"].valid.tolist() == [True, True]


def test_a_missing_auxiliary_view_has_no_say():
    model = lawam()
    window = model.fake_window(2)
    valid = window.frame_valid | {"wrist": torch.tensor([[False, False], [True, True]])}
    frames = window.frames | {"wrist": 255 - window.frames["wrist"]}
    first, second = (
        model.loss(replace(window, frame_valid=valid, frames=f), "policy", seeded()).terms["action"].value
        for f in (window.frames, frames)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_padded_actions_have_no_say():
    model = lawam()
    window = model.fake_window(2)
    assert not window.action_valid.all()
    junk = torch.where(window.action_valid, window.actions, 1e6)
    first, second = (model.loss(w, "policy", seeded()).terms["action"] for w in (window, replace(window, actions=junk)))
    assert torch.equal(first.value, second.value)


def test_features_from_a_store_equal_frames():
    model = lawam(dual_view=False)
    window = model.fake_window(2)
    frames = window.frames["front"]
    features = torch.stack([model.encode(frames[:, 0]), model.encode(frames[:, 1])], dim=1).unsqueeze(1)
    stored = replace(window, features={"front": features})
    for stage in ("latent_action", "policy"):
        first, second = (model.loss(w, stage, seeded()).scalars() for w in (window, stored))
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_data_wider_than_the_model_are_refused():
    model = lawam()
    window = model.fake_window(2)
    wide = replace(window, actions=torch.zeros(2, 8, 7), action_valid=torch.ones(2, 8, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="7 dimensions, the model takes 6"):
        model.loss(wide, "policy", seeded())


# Compositions of the ablation


@pytest.mark.parametrize("subgoal", ["latent_action_only", "none"])
def test_compositions_without_lawm(subgoal):
    model = lawam(subgoal=subgoal)
    model.prepare_stage("policy")
    losses = model.loss(model.fake_window(2), "policy", seeded())
    assert set(losses) == {"action"} | ({"distillation"} if subgoal == "latent_action_only" else set())
    losses.total().backward()
    assert gradient(model.lam.decoder) == 0
    assert model.act(model.fake_window(2).observation()).actions.isfinite().all()
    with pytest.raises((ValueError, StageError), match="imagines nothing"):
        model.imagine(model.fake_window(2).observation())


def test_the_expert_believes_the_subgoal_it_is_given():
    model = lawam().eval()
    observation = model.fake_window(2).observation()
    other = torch.randn(2, 16, 24, generator=seeded())
    own, given = (model.act(observation, generator=seeded(), subgoal=subgoal).actions for subgoal in (None, other))
    assert not torch.allclose(own, given)


# RepWAM's latent action in place of LaWAM's

LINEAR = LinearTransitionConfig(hidden=32, pooling=AttentionPooling(queries=2, width=16, heads=2))


def test_repwam_s_latent_action_learns_without_actions_or_state():
    torch.manual_seed(0)
    first, last = overfit(LaWAM(replace(LAWAM, latent_action=LINEAR)), "latent_action", 60, 5e-3)
    assert set(first) == {"forward", "reversed", "copy_present"}
    assert last["forward"] < 0.5 * last["copy_present"]


def test_repwam_s_latent_action_carries_the_policy():
    torch.manual_seed(0)
    model = LaWAM(replace(LAWAM, latent_action=LINEAR))
    window = model.fake_window(2)
    model.prepare_stage("policy")
    terms = model.loss(window, "policy", seeded()).terms
    assert set(terms) == {"distillation", "subgoal", "action"}
    terms["subgoal"].mean().backward()
    assert gradient(model.lam.decoder) > 0
    assert gradient(model.latent_head) > 0
    assert gradient(model.lam.encoder) == 0
    statistics = model.lam.scale.batches_seen.item()
    model.eval()
    future = model.imagine(window.observation())
    assert future.latent_action.shape == (2, 1, 4)
    rolled = model.imagine(window.observation(), latent_actions=future.latent_action.unsqueeze(1))
    torch.testing.assert_close(rolled.values, future.values)
    assert model.act(window.observation(), generator=seeded()).actions.isfinite().all()
    assert model.lam.scale.batches_seen.item() == statistics == 0


def test_the_kind_of_latent_action_is_saved_with_the_config():
    config = replace(LAWAM, latent_action=LINEAR)
    values = to_dict(config)
    assert from_dict(LaWAMConfig, values) == config
    # Checkpoints older than the choice say no kind.
    older = to_dict(LAWAM)
    older["latent_action"].pop("kind")
    assert from_dict(LaWAMConfig, older) == LAWAM


# Times


@pytest.mark.parametrize(("rule", "expected"), [("round", [5, 2, 8]), ("floor", [4, 2, 8])])
def test_actions_of_a_chunk(rule, expected):
    model = lawam(valid_steps=rule)
    times, valid = model.chunk_times(torch.tensor([11.5, 5.0, 100.0]))
    assert valid.sum(dim=1).tolist() == expected
    assert times[1].tolist() == pytest.approx([i / 5.0 for i in range(8)])


def test_imagine_rolls_out_latent_actions():
    model = lawam().eval()
    observation = model.fake_window(2).observation()
    own = model.imagine(observation)
    latents = torch.stack([own.latent_action, torch.zeros_like(own.latent_action)], dim=1)
    rolled = model.imagine(observation, latent_actions=latents)
    assert rolled.values.shape == (2, 2, 16, 24)
    torch.testing.assert_close(rolled.values[:, 0], own.values[:, 0])
    assert rolled.times[0].tolist() == pytest.approx([0.4, 0.8])
    assert torch.equal(model.predict(own.values[:, 0], latents[:, 1]), rolled.values[:, 1])


def test_imagine_takes_no_robot_actions():
    model = lawam()
    with pytest.raises((ValueError, StageError), match="pass latent_actions"):
        model.imagine(model.fake_window(2).observation(), torch.zeros(2, 8, 6))


# Sizes

STORED = 2_555_179_360
"""Parameters of the published file (papers.md 1.8)."""
GUIDANCE = 256 * 768
"""Its embedding for classifier-free guidance, which is off: the one tensor that we carry without a module."""


def test_parameter_counts_of_the_published_model():
    with torch.device("meta"):
        model = LaWAM(preset("paper"))
    total = sum(parameter.numel() for parameter in model.parameters())
    lawm = sum(parameter.numel() for parameter in model.lam.decoder.parameters())
    assert total + GUIDANCE == STORED
    assert lawm == 228_286_720
    assert lawm == pytest.approx(230e6, rel=0.03)
