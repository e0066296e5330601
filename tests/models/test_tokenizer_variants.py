"""RepWAM under other tokenizers: each variant differs in its tokenizer alone, and trains."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from wamkit.encoders.repvitok import RepViTok, RepViTokConfig
from wamkit.encoders.wan_vae import WanVAE, WanVAEConfig, wan22_vae
from wamkit.errors import WamkitError
from wamkit.models.repwam import RepWAM, preset
from wamkit.models.tokenizer_variants import TOKENIZERS, with_tokenizer
from wamkit.nn.patch_discriminator import DiscriminatorConfig
from wamkit.training.optimizer import optimizer_groups

TINY = preset("tiny")
OBJECTIVE = replace(TINY.tokenizer.objective, representation_width=16)
MICRO = replace(
    TINY,
    tokenizer=replace(
        TINY.tokenizer, width=16, heads=2, encoder_layers=1, decoder_layers=1, latent_width=16, objective=OBJECTIVE
    ),
    representation=replace(TINY.representation, resolution=32, width=16, layers=1, heads=2),
    resolution=(32, 32),
    training_frames=1,
)


def differing(one, other) -> set[str]:
    return {field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)}


def test_what_a_variant_changes():
    assert with_tokenizer(TINY, "repvitok") == TINY
    twin, control = with_tokenizer(TINY, "repvitok_reconstruction"), with_tokenizer(TINY, "repvitok_scrambled")
    assert differing(twin, TINY) == {"tokenizer", "representation"}
    assert differing(control, TINY) == {"tokenizer"}
    for config, alignment in ((twin, "none"), (control, "scrambled")):
        assert config.tokenizer.objective.alignment == alignment
        assert differing(config.tokenizer, TINY.tokenizer) == {"objective"}
        assert differing(config.tokenizer.objective, OBJECTIVE) <= {"alignment", "representation_width"}
    vae = with_tokenizer(TINY, "wan_vae")
    assert isinstance(vae.tokenizer, WanVAEConfig)
    assert vae.tokenizer.cell == TINY.tokenizer.patch
    assert vae.tokenizer.channels == TINY.tokenizer.latent_width
    assert differing(vae, TINY) == {"tokenizer", "representation"}


def test_published_encoders_are_compared_with_wans_published_vae():
    paper = preset("paper")
    assert with_tokenizer(paper, "wan_vae").tokenizer == wan22_vae()
    assert with_tokenizer(paper, "wan_vae").video.channels == 48
    assert isinstance(with_tokenizer(paper, "repvitok_reconstruction").tokenizer, RepViTokConfig)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_variant_trains_by_the_same_stage(name):
    torch.manual_seed(0)
    config = with_tokenizer(MICRO, name)
    if name == "wan_vae":
        small = replace(config.tokenizer, width=4, channels=4)
        config = replace(config, tokenizer=small, video=replace(config.video, channels=4))
    model = RepWAM(config)
    model.prepare_stage("tokenizer")
    losses = model.loss(model.fake_window(2, stage="tokenizer"), "tokenizer", torch.Generator().manual_seed(0))
    assert ("alignment" in losses.terms) == (name in ("repvitok", "repvitok_scrambled"))
    losses.total().backward()
    reached = {part for part, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert all(part.startswith("tokenizer.") for part in reached)
    assert isinstance(model.tokenizer, WanVAE if name == "wan_vae" else RepViTok)


def test_both_players_train_under_one_optimiser():
    """The adversary is in the stage's optimiser without a word about it, and its own loss alone reaches it."""
    torch.manual_seed(0)
    objective = replace(MICRO.tokenizer.objective, discriminator=DiscriminatorConfig(width=4, layers=1))
    model = RepWAM(replace(MICRO, tokenizer=replace(MICRO.tokenizer, objective=objective)))
    model.prepare_stage("tokenizer")
    groups = optimizer_groups(
        model, model.parameter_groups("tokenizer"), stage="tokenizer", learning_rate=1e-3, weight_decay=0.01
    )
    members = {name for group in groups for name in group["names"]}
    adversary = {
        f"tokenizer.objective.discriminator.{name}" for name, _ in model.tokenizer.adversary.named_parameters()
    }
    assert adversary < members == {name for name, _ in model.named_parameters() if name.startswith("tokenizer.")}
    window = model.fake_window(2, stage="tokenizer")
    losses = model.loss(window, "tokenizer", torch.Generator().manual_seed(0))
    losses.total().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if name in adversary}
    model.zero_grad()
    losses = model.loss(window, "tokenizer", torch.Generator().manual_seed(0))
    losses.terms["discriminator"].mean().backward()
    for name, parameter in model.named_parameters():
        if name in adversary:
            torch.testing.assert_close(found[name], parameter.grad)
        else:
            assert parameter.grad is None


def test_a_wrong_name_gets_a_suggestion():
    with pytest.raises(WamkitError, match="Did you mean 'repvitok'"):
        with_tokenizer(TINY, "repvitk")
    with pytest.raises(WamkitError, match="start from"):
        with_tokenizer(with_tokenizer(TINY, "wan_vae"), "repvitok")
