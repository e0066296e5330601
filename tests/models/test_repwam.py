"""RepWAM's own: sizes, stages by composition, what each stage looks at. What it shares is in test_causal_model.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import REPWAM, TOKENIZER, repwam
from micro_video import VAE
from micro_weights import gradient, seeded

from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.models.causal.config import CausalModelError
from wamkit.models.repwam import RepWAM, paper_5b, preset

ALONE = replace(TOKENIZER, objective=replace(TOKENIZER.objective, alignment="none"))
GOLDEN = {
    "encoder": {"hidden_patches": 0.484409, "visible_patches": 0.049204},
    "tokenizer": {"l1": 0.689107, "alignment": 0.346269},
    "latent_action": {"forward": 1.543214, "reversed": 1.600938, "copy_previous": 1.513546},
    "pretrain": {"video": 2.632251, "action": 2.46926, "inverse": 2.4684, "copy_previous": 1.513546},
    "adapt": {"video": 2.572407, "action": 2.340298, "inverse": 2.33974, "copy_previous": 1.513546},
}


@pytest.fixture(scope="module")
def model() -> RepWAM:
    return repwam()


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_some_training_frame_sees_no_first_picture(name):
    """As all but the first do while a robot acts (docs/tokenizers.md)."""
    config = preset(name)
    assert config.training_frames + 1 > config.tokenizer.window


@pytest.mark.parametrize(("config", "billions"), [(preset("paper"), 1.3), (paper_5b(), 5.0)], ids=["1.3B", "5B"])
def test_published_sizes(config, billions):
    """Of the visual expert, which names the models; the action expert's 350 million are beside the smaller one."""
    with torch.device("meta"):
        parts = RepWAM(config).parts()
    counts = {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}
    assert counts["video_expert"] / 1e9 == pytest.approx(billions, rel=0.03)
    if billions == 1.3:
        assert counts["action_expert"] / 1e6 == pytest.approx(350, rel=0.03)


def test_golden_numbers(model):
    found = {}
    for stage in model.stages:
        model.prepare_stage(stage)
        found[stage] = {k: v.item() for k, v in model.loss(model.fake_window(2), stage, seeded()).scalars().items()}
    assert found.keys() == GOLDEN.keys()
    for stage, values in GOLDEN.items():
        assert found[stage] == pytest.approx(values, rel=1e-4), stage


def test_pretraining_looks_at_no_action_and_adapting_at_no_latent_action(model):
    window = model.fake_sequence(2)
    other = replace(window, actions=-window.actions)
    free = replace(window, action_valid=torch.zeros_like(window.action_valid))
    values = [model.loss(w, "pretrain", seeded()).terms["action"].value for w in (window, other, free)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    model.prepare_stage("adapt")
    model.loss(window, "adapt", seeded()).total().backward()
    assert gradient(model.latent_actions, model.tokenizer) == 0.0
    assert gradient(model.transformer.actions.heads.enter["real"]) > 0
    assert gradient(model.transformer.actions.heads.enter["latent"]) == 0.0
    model.zero_grad()


def test_the_papers_ablations_are_other_compositions():
    assert repwam().stages == ("encoder", "tokenizer", "latent_action", "pretrain", "adapt")
    plain = repwam(tokenizer=ALONE, representation=None)
    assert plain.stages == ("tokenizer", "latent_action", "pretrain", "adapt")
    assert set(plain.loss(plain.fake_window(2), "tokenizer", seeded())) == {"l1"}
    none = repwam(latent_actions="none")
    assert none.stages == ("encoder", "tokenizer", "pretrain", "adapt")
    none.prepare_stage("pretrain")
    losses = none.loss(none.fake_window(2), "pretrain", seeded())
    assert set(losses) == {"video"}
    losses.total().backward()
    assert all((p.grad is not None) == p.requires_grad for p in none.parameters())
    joint = repwam(latent_actions="joint")
    assert joint.stages == ("encoder", "tokenizer", "pretrain", "adapt")
    joint.prepare_stage("tokenizer")
    losses = joint.loss(joint.fake_window(2), "tokenizer", seeded())
    assert {"l1", "alignment", "forward", "reversed"} == set(losses)
    losses.terms["forward"].mean().backward()
    assert gradient(joint.tokenizer.encoder) > 0
    assert gradient(joint.latent_actions) > 0


def test_wans_vae_and_lawams_latent_actions_stand_in(model):
    wan = replace(REPWAM, tokenizer=VAE, representation=None, video=replace(REPWAM.video, channels=4, patch=(1, 2, 2)))
    lam = LatentActionConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, latent_width=3, queries=2)
    swapped = RepWAM(replace(wan, latent_action=lam))
    window = swapped.fake_sequence(2)
    for stage in ("tokenizer", "latent_action", "pretrain"):
        assert swapped.loss(window, stage, seeded()).total().isfinite(), stage


def test_a_representation_without_alignment_is_refused():
    with pytest.raises(CausalModelError, match="representation is set and the tokenizer is not"):
        replace(REPWAM, tokenizer=ALONE)


def test_a_checkpoint_of_another_tokenizer_is_refused(model, tmp_path):
    from safetensors.torch import save_file

    from wamkit.training.errors import ResumeError
    from wamkit.training.state import load_pretrained

    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    other = repwam(tokenizer=replace(TOKENIZER, width=24))
    with pytest.raises(ResumeError, match="does not fit this model's config"):
        load_pretrained(other, tmp_path)
