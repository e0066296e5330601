"""Light-WAM whole: what it learns, what reaches what, and what must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_video import LIGHT, light
from micro_weights import gradient, other_future, seeded

from wamkit.dynamics.video_flow import downsample
from wamkit.errors import WamkitError
from wamkit.models.base import StageError
from wamkit.models.light_wam import LightWAM, preset
from wamkit.nn.lora import is_lora, lora_parameters

GOLDEN = {
    "vae": {"pixels": 0.502243, "kl": 0.015537},
    "video": {"video": 2.534422, "copy_present": 0.001549},
    "policy": {"video": 2.914794, "action": 1.161597},
}


@pytest.fixture(scope="module")
def model() -> LightWAM:
    return light()


@pytest.mark.parametrize("stage", list(GOLDEN))
def test_golden_numbers(stage):
    model = light()
    model.prepare_stage(stage)
    losses = model.loss(model.fake_window(2, stage=stage), stage, seeded())
    assert {name: value.item() for name, value in losses.scalars().items()} == pytest.approx(
        GOLDEN[stage], rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize(
    ("stage", "steps", "term"), [("vae", 12, "pixels"), ("video", 25, "video"), ("policy", 25, "action")]
)
def test_overfits_one_batch(stage, steps, term):
    torch.manual_seed(0)
    model = LightWAM(LIGHT)
    model.prepare_stage(stage)
    window = model.fake_window(2, stage=stage)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for step in range(steps):
        losses = model.loss(window, stage, seeded(step % 2))
        values.append(losses.scalars()[term].item())
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    limit = {"vae": 0.98, "video": 0.8, "policy": 0.7}[stage]
    assert values[-1] < limit * values[0]


# What reaches what


def test_future_frames_reach_no_action_and_no_correction_through_it(model):
    window = model.fake_window(2)
    model.prepare_stage("policy")
    first, second = (model.loss(w, "policy", seeded()).terms for w in (window, other_future(window)))
    assert torch.equal(first["action"].value, second["action"].value)
    assert not torch.equal(first["video"].value, second["video"].value)


def test_states_of_the_present_are_the_same_with_a_future_beside_it():
    """Under the mask the first frame's tokens ignore the others, so a policy may read them alone."""
    model = light().eval()
    latents, _ = model.latents_of(model.fake_window(1))
    words, valid = model.words_of(("open",))
    states: list = []
    with torch.no_grad():
        levels = torch.tensor([[0.0, 0.7]])
        model.backbone(latents, levels, words, valid, after=model._adapt(states))
        alone = model.read(latents[:, :, :1], words, valid)
    tokens = alone[0].adapted.shape[1]
    for whole, single in zip(states, alone, strict=True):
        torch.testing.assert_close(whole.adapted[:, :tokens], single.adapted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("vae", lambda name: name.startswith("vae.")),
        ("video", lambda name: name.startswith("backbone.") and not is_lora(name)),
        (
            "policy",
            lambda name: (
                is_lora(name)
                or name.startswith(("adapters.", "expert.", "proprioception."))
                or name
                in (
                    "backbone.model.scale_shift_table",
                    "backbone.model.proj_out.weight",
                    "backbone.model.proj_out.bias",
                )
            ),
        ),
    ],
)
def test_frozen_parts_stay_frozen(stage, trained):
    model = light()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.prepare_stage(stage)
    groups = [{"params": group["params"]} for group in model.parameter_groups(stage)]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1)
    model.loss(model.fake_window(2, stage=stage), stage, seeded()).total().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) is not trained(name), name
    for name in ("latent_mean", "latent_std", "batches_seen"):
        assert torch.equal(getattr(model.vae, name), before[f"vae.{name}"]) is (stage != "vae"), name


def test_without_video_supervision_only_what_the_actions_read_is_trained():
    model = light(video_supervision="none")
    model.prepare_stage("policy")
    losses = model.loss(model.fake_window(2), "policy", seeded())
    assert set(losses) == {"action"}
    losses.total().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not any(p.requires_grad for p in lora_parameters(model.backbone.blocks[-1]))


def test_the_words_and_the_state_reach_the_actions(model):
    model.eval()
    observation = model.fake_window(2).observation()
    own = model.act(observation).actions
    for other in (replace(observation, task=("close it",) * 2), replace(observation, state=observation.state + 1)):
        assert not torch.allclose(own, model.act(other).actions)


def test_a_missing_state_is_no_zero_state(model):
    window = model.fake_window(2)
    gone = replace(
        window, state_valid=torch.zeros_like(window.state_valid), state=torch.full_like(window.state, torch.nan)
    )
    model.prepare_stage("policy")
    unknown = model.loss(gone, "policy", seeded()).terms["action"].value
    zero = model.loss(replace(window, state=torch.zeros_like(window.state)), "policy", seeded()).terms["action"].value
    assert unknown.isfinite().all()
    assert not torch.allclose(unknown, zero)


def test_the_supervised_prefix():
    model = light(supervised_steps=2)
    window = model.fake_window(2)
    later = replace(window, actions=torch.where(torch.arange(8)[None, :, None] < 2, window.actions, 100.0))
    first, second = (model.loss(w, "policy", seeded()).terms["action"].value for w in (window, later))
    assert torch.equal(first, second)
    assert not torch.equal(first, light().loss(window, "policy", seeded()).terms["action"].value)


def test_padded_actions_and_people_have_no_say(model):
    window = model.fake_window(2)
    assert not window.action_valid.all()
    junk = replace(window, actions=torch.where(window.action_valid, window.actions, torch.nan))
    first, second = (model.loss(w, "policy", seeded()).terms["action"].value for w in (window, junk))
    assert torch.equal(first, second)
    person = replace(window, embodiment=torch.tensor([0, 1]))
    terms = model.loss(person, "policy", seeded()).terms
    assert terms["action"].valid.tolist() == [False, True]
    assert terms["video"].valid.tolist() == [True, True]


def test_latents_from_a_store_equal_frames(model):
    window = model.fake_window(2)
    encoder = model.clip_encoder("policy")
    stored = encoder({camera: window.frames[camera] for camera in encoder.cameras}).unsqueeze(1)
    with_store = replace(window, features={"front": stored})
    first, second = (model.loss(w, "policy", seeded()).scalars() for w in (window, with_store))
    assert first == second


def test_a_window_past_its_episode_teaches_no_video(model):
    window = model.fake_window(2)
    valid = {camera: flags.clone() for camera, flags in window.frame_valid.items()}
    valid["front"][0, 1:] = False
    terms = model.loss(replace(window, frame_valid=valid), "policy", seeded()).terms
    assert terms["video"].valid.tolist() == [False, True]
    assert terms["action"].valid.tolist() == [True, True]


def test_windows_of_another_length_are_refused(model):
    window = model.fake_window(2)
    short = replace(
        window,
        frames={c: v[:, :2] for c, v in window.frames.items()},
        frame_valid={c: v[:, :2] for c, v in window.frame_valid.items()},
        **{name: getattr(window, name)[:, :2] for name in ("frame_times", "state", "state_valid")},
    )
    with pytest.raises(StageError, match=r"2 frames, light_wam takes 5.*frame_offsets_s"):
        model.loss(short, "policy", seeded())


def test_acting_is_one_pass_and_stops_after_the_last_tap(model, monkeypatch):
    model.eval()
    run: list[int] = []
    for index, block in enumerate(model.backbone.blocks):
        monkeypatch.setattr(block.attn1.to_v, "forward", _counting(block.attn1.to_v.forward, run, index))
    model.act(model.fake_window(1).observation())
    assert run == [0, 1]


def _counting(forward, run, index):
    def counted(*args, **kwargs):
        run.append(index)
        return forward(*args, **kwargs)

    return counted


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "max", "strided"])
def test_the_future_may_be_coarser(factor, pooling):
    patch = replace(LIGHT.video, patch=(1, 1, 1))
    model = light(downsample=factor, downsample_pooling=pooling, video=patch)
    model.prepare_stage("policy")
    assert model.loss(model.fake_window(1), "policy", seeded()).total().isfinite()
    future = model.eval().imagine(model.fake_window(1).observation())
    assert future.values.shape == (1, 4, 3, 16 // factor, 32 // factor)
    assert 0 <= future.values.min() <= future.values.max() <= 1


@pytest.mark.parametrize("pooling", ["attention", "concatenation", "mean"])
@pytest.mark.parametrize("sources", [("backbone",), ("backbone", "adapted", "delta")])
def test_baselines_by_composition(pooling, sources):
    model = light(expert=replace(LIGHT.expert, pooling=pooling, sources=sources))
    model.prepare_stage("policy")
    model.loss(model.fake_window(1), "policy", seeded()).total().backward()
    assert gradient(model.expert) > 0
    assert gradient(model.adapters) > 0


def test_imagination_agrees_with_itself_and_takes_no_actions(model):
    model.eval()
    observation = model.fake_window(1).observation()
    assert torch.equal(model.imagine(observation).values, model.imagine(observation).values)
    other = model.imagine(observation, generator=seeded(5)).values
    assert not torch.equal(other, model.imagine(observation).values)
    with pytest.raises(StageError, match="takes no actions"):
        model.imagine(observation, torch.zeros(1, 8, 6))


def test_adapters_must_be_blocks_in_order():
    for adapters in ((), (1, 0), (3,)):
        with pytest.raises(WamkitError, match="adapters are"):
            replace(LIGHT, adapters=adapters)


def test_downsampling():
    grid = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert downsample(grid, 2, "mean").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert downsample(grid, 2, "max").flatten().tolist() == [5.0, 7.0, 13.0, 15.0]
    assert downsample(grid, 2, "strided").flatten().tolist() == [0.0, 2.0, 8.0, 10.0]
    with pytest.raises(ValueError, match="cannot be down-sampled by 3"):
        downsample(grid, 3)


# Sizes


def test_parameter_counts_of_the_published_model():
    """papers.md 2.3 and 2.7: 441.03 M trained of 1,986.82 M; the parts to the last weight."""
    with torch.device("meta"):
        model = LightWAM(preset("paper"))
    model.prepare_stage("policy")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora = sum(p.numel() for p in lora_parameters(model.backbone))
    assert sum(p.numel() for p in model.expert.parameters()) == 351_028_791
    assert sum(p.numel() for p in model.adapters.parameters()) == 2_373_888
    assert lora == 87_490_560
    assert trained == 441_031_543
    total = sum(p.numel() for p in model.parameters())
    assert total == 1_986_819_434
    assert model.stages == ("policy",)
    assert [model.latent_frames, *model.latent_size] == [3, 28, 56]
