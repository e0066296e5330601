"""RepViTok's objective: each player's gradient is its own loss's, the twin and the control differ in one term alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from wamkit.encoders.repvitok import RepViTok, RepViTokConfig
from wamkit.encoders.repvitok_objective import (
    AlignmentError,
    RepresentationAlignment,
    RepViTokObjectiveConfig,
    ScrambledAlignment,
)
from wamkit.encoders.vgg16 import PerceptualWeightsError
from wamkit.losses.adversarial import critic_hinge
from wamkit.nn.patch_discriminator import DiscriminatorConfig

OBJECTIVE = RepViTokObjectiveConfig(
    perceptual_weight=0.0, discriminator=DiscriminatorConfig(width=4, layers=1), representation_width=10
)
CONFIG = RepViTokConfig(
    patch=8, width=16, encoder_layers=1, decoder_layers=1, heads=2, latent_width=6, objective=OBJECTIVE
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips() -> torch.Tensor:
    return torch.randint(0, 256, (3, 5, 3, 16, 16), generator=seeded(), dtype=torch.uint8)


def targets() -> torch.Tensor:
    return torch.randn(3, 5, 4, 10, generator=seeded(1))


def made(**changes) -> RepViTok:
    torch.manual_seed(0)
    return RepViTok(replace(CONFIG, objective=replace(OBJECTIVE, **changes)))


def gradients(tokenizer: RepViTok, *names: str) -> dict[str, torch.Tensor]:
    tokenizer.zero_grad()
    losses = tokenizer.pretrain_losses(clips(), seeded(), targets())
    sum(losses[name].mean() for name in names or losses).backward()
    return {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}


def test_the_terms_and_their_weights():
    losses = made().pretrain_losses(clips(), seeded(), targets())
    assert list(losses) == ["l1", "generator", "discriminator", "alignment"]
    assert all(value.shape == (3,) and value.isfinite().all() for value in losses.values())
    doubled = made(l1_weight=2.0, adversarial_weight=0.2, alignment_weight=2.0)
    for name, value in doubled.pretrain_losses(clips(), seeded(), targets()).items():
        torch.testing.assert_close(value, losses[name] * (1.0 if name == "discriminator" else 2.0))


def test_each_player_gets_the_gradient_of_its_own_loss():
    tokenizer = made()
    all_terms = gradients(tokenizer)
    players = {name for name in all_terms if name.startswith("objective.discriminator.")}
    assert set(all_terms) == {name for name, _ in tokenizer.named_parameters()}
    against, rest = gradients(tokenizer, "discriminator"), gradients(tokenizer, "l1", "generator", "alignment")
    assert set(against) == players
    assert set(rest) == set(all_terms) - players
    for name, gradient in all_terms.items():
        torch.testing.assert_close(gradient, (against | rest)[name])
    generator = gradients(tokenizer, "generator")
    assert generator["enter.weight"].abs().sum() > 0
    assert tokenizer.adversary is tokenizer.objective.discriminator


def test_the_discriminator_learns_to_tell_and_the_tokenizer_to_convince():
    tokenizer = made(alignment="none")
    losses = tokenizer.pretrain_losses(clips(), seeded())
    network = tokenizer.adversary
    first = losses["discriminator"].mean().item()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        losses = tokenizer.pretrain_losses(clips(), seeded())
        losses["discriminator"].mean().backward()
        optimizer.step()
    assert losses["discriminator"].mean().item() < 0.5 * first
    before = losses["generator"].mean().item()
    parameters = [p for name, p in tokenizer.named_parameters() if not name.startswith("objective.")]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        losses = tokenizer.pretrain_losses(clips(), seeded())
        losses["generator"].mean().backward()
        optimizer.step()
    assert losses["generator"].mean().item() < before
    assert losses["discriminator"].mean().item() > 0.5 * first


def test_the_critic_sees_the_pictures_that_were_made():
    tokenizer = made()
    pixels = tokenizer.pixels(clips())
    latents, _ = tokenizer.latents_of(pixels, (2, 2))
    pictures = tokenizer.pictures_of(latents, (2, 2))
    scores = [tokenizer.adversary(x.flatten(0, 1)).unflatten(0, (3, 5)) for x in (pixels, pictures)]
    expected = critic_hinge(*scores).flatten(1).mean(dim=1)
    losses = tokenizer.pretrain_losses(clips(), seeded(), targets())
    torch.testing.assert_close(losses["discriminator"], expected)
    torch.testing.assert_close(losses["generator"], -0.1 * scores[1].flatten(1).mean(dim=1))


def test_autocast_leaves_latents_and_losses_in_full_precision():
    tokenizer = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = tokenizer.pretrain_losses(clips(), seeded(), targets())
        latents = tokenizer.encode(clips())
    assert latents.dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in losses.values())
    plain = tokenizer.pretrain_losses(clips(), seeded(), targets())
    for name, value in losses.items():
        torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.05)
    sum(value.mean() for value in losses.values()).backward()


def test_fewer_pictures_may_be_judged():
    tokenizer = made(judged_pictures=1)
    first, again, other = (tokenizer.pretrain_losses(clips(), seeded(seed), targets()) for seed in (0, 0, 1))
    assert torch.equal(first["discriminator"], again["discriminator"])
    assert not torch.equal(first["discriminator"], other["discriminator"])
    assert torch.equal(first["l1"], other["l1"])


def test_the_twin_and_the_control_differ_from_the_paper_in_alignment_alone():
    paper, twin, control = made(), made(alignment="none"), made(alignment="scrambled")
    assert type(paper.objective.alignment) is RepresentationAlignment
    assert type(control.objective.alignment) is ScrambledAlignment
    assert twin.objective.alignment is None
    assert (paper.target_width, twin.target_width, control.target_width) == (10, None, 10)
    rows = [
        model.pretrain_losses(clips(), seeded(), targets() if model.target_width else None)
        for model in (paper, twin, control)
    ]
    assert list(rows[0]) == list(rows[2]) == [*rows[1], "alignment"]
    assert torch.equal(rows[0]["l1"], rows[1]["l1"])
    assert torch.equal(rows[0]["l1"], rows[2]["l1"])
    assert not torch.equal(rows[0]["alignment"], rows[2]["alignment"])


def test_scrambled_targets_say_nothing_of_the_clip():
    """The paper's loss can be driven far below what the targets' mean gives; the control's cannot."""
    torch.manual_seed(0)
    latents = torch.randn(4, 2, 9, 6)
    wanted = (latents.mean(dim=1, keepdim=True) @ torch.randn(6, 10)).contiguous()
    mean_only = (wanted - wanted.mean(dim=(0, 1, 2))).square().mean()
    reached = {}
    for kind in (RepresentationAlignment, ScrambledAlignment):
        torch.manual_seed(0)
        alignment, generator = kind(6, 10), seeded()
        optimizer = torch.optim.Adam(alignment.parameters(), lr=3e-2)
        values = []
        for _ in range(150):
            optimizer.zero_grad()
            value = alignment(latents, wanted, generator).mean()
            value.backward()
            optimizer.step()
            values.append(value.item())
        reached[kind] = sum(values[-30:]) / 30
    assert reached[RepresentationAlignment] < 0.1 * mean_only
    assert reached[ScrambledAlignment] > 0.8 * mean_only


def test_scrambling_keeps_the_targets_themselves(monkeypatch):
    import wamkit.encoders.repvitok_objective as objective

    seen = []
    original = objective.time_averaged_alignment
    monkeypatch.setattr(
        objective,
        "time_averaged_alignment",
        lambda projected, dealt: seen.append(dealt) or original(projected, dealt),
    )
    ScrambledAlignment(6, 10)(torch.randn(3, 2, 4, 6), targets(), seeded())
    (dealt,) = seen
    for sample in range(3):
        source = targets()[(sample - 1) % 3]
        # A sample's pictures are dealt alike: what is averaged over time is still one patch.
        order = (dealt[sample, 0, :, None] == source[0, None]).all(-1).float().argmax(dim=1)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert torch.equal(dealt[sample], source[:, order])


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({}, None, "give targets"),
        ({}, torch.zeros(3, 5, 9, 10), "patches must be the latent's cells"),
        ({}, torch.zeros(3, 5, 4, 12), "representation_width"),
        ({"alignment": "none"}, torch.zeros(3, 5, 4, 10), "give it no targets"),
    ],
)
def test_targets_that_do_not_fit_are_refused(changes, given, said):
    with pytest.raises(AlignmentError, match=said):
        made(**changes).pretrain_losses(clips(), seeded(), given)


def test_without_weights_the_perceptual_term_is_off_and_says_so_once():
    tokenizer = made(perceptual_weight=1.0)
    with pytest.warns(UserWarning, match="WITHOUT its perceptual loss"):
        losses = tokenizer.pretrain_losses(clips(), seeded(), targets())
    assert "perceptual" not in losses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.pretrain_losses(clips(), seeded(), targets())
        made().pretrain_losses(clips(), seeded(), targets())  # whoever wants none is told nothing


def test_a_file_that_is_not_there_stops_the_run(tmp_path):
    tokenizer = made(perceptual_weight=1.0, perceptual_network=str(tmp_path / "vgg16.pth"))
    with pytest.raises(PerceptualWeightsError, match="no file"):
        tokenizer.pretrain_losses(clips(), seeded(), targets())


def test_the_perceptual_network_is_in_the_loss_and_not_in_the_checkpoint():
    class Double(torch.nn.Module):
        def forward(self, pictures, real):
            return 2.0 * (pictures - real).square().flatten(1).mean(dim=1)

    tokenizer = made(perceptual_weight=0.5, perceptual_network="set below")
    tokenizer.objective.perceptual._network = Double()
    losses = tokenizer.pretrain_losses(clips(), seeded(), targets())
    pixels = tokenizer.pixels(clips())
    pictures = tokenizer.pictures_of(tokenizer.latents_of(pixels, (2, 2))[0], (2, 2))
    torch.testing.assert_close(losses["perceptual"], (pictures - pixels).square().flatten(1).mean(dim=1))
    assert not any("perceptual" in name for name in tokenizer.state_dict())
    assert gradients(tokenizer, "perceptual")["enter.weight"].abs().sum() > 0
