"""RepWAM's latent actions: the step is linear, K is what it says, and four numbers explain what moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.configuration import from_dict, to_dict
from wamkit.dynamics.base import FramePairs, LatentActionError, LatentDynamics, Posterior
from wamkit.dynamics.frame_reading import AttentionPooling, FlattenPooling, MeanPooling, TokenPooling
from wamkit.dynamics.latent_action import LatentActionConfig, LatentActionModel
from wamkit.dynamics.latent_actions import infer_along, latent_dynamics, predict_along
from wamkit.dynamics.linear_transition import ByToken, LatentActionTokenizer, LinearTransitionConfig, WholeGrid
from wamkit.dynamics.token_mixing import (
    DiagonalMixing,
    FullMixing,
    IdentityMixing,
    LocalMixing,
    LowRankMixing,
    ScaledMixing,
    token_mixing,
)
from wamkit.losses.reconstruction import reconstruction

GRID, WIDTH = (3, 4), 6
POOLINGS = (MeanPooling(), AttentionPooling(queries=2, width=16, heads=2), FlattenPooling(), TokenPooling(8))
MIXINGS = (
    FullMixing(),
    FullMixing("softmax"),
    LowRankMixing(2),
    LowRankMixing(2, "softmax"),
    LocalMixing(),
    LocalMixing(rows="softmax"),
    DiagonalMixing(),
    ScaledMixing(),
    IdentityMixing(),
)
EMISSIONS = (WholeGrid(), ByToken(8))


def name(config) -> str:
    return config.kind + ("_softmax" if getattr(config, "rows", "") == "softmax" else "")


def grids(seed: int = 0, count: int = 5) -> torch.Tensor:
    return torch.randn(count, 12, WIDTH, generator=torch.Generator().manual_seed(seed))


def pairs(count: int = 5, **changes) -> FramePairs:
    valid = torch.ones(count, dtype=torch.bool)
    return replace(FramePairs(present=grids(0, count), future=grids(1, count), valid=valid), **changes)


def tokenizer(**changes) -> LatentActionTokenizer:
    torch.manual_seed(0)
    config = replace(LinearTransitionConfig(hidden=16, pooling=POOLINGS[1]), **changes)
    return LatentActionTokenizer(config, GRID, WIDTH)


# K


@pytest.mark.parametrize("mixing", MIXINGS, ids=name)
def test_applying_k_is_multiplying_by_it(mixing):
    mix = token_mixing(mixing, GRID)
    emitted = torch.randn(2, 12, mix.numbers)
    k, z = mix.matrix(emitted), grids(count=2)
    torch.testing.assert_close(mix(emitted, z), k @ z, atol=1e-5, rtol=1e-5)
    if getattr(mixing, "rows", "") == "softmax":
        assert (k >= 0).all()
        torch.testing.assert_close(k.sum(dim=-1), torch.ones(2, 12))


@pytest.mark.parametrize("mixing", MIXINGS, ids=name)
def test_k_starts_near_the_identity(mixing):
    mix = token_mixing(mixing, GRID)
    k = mix.matrix(torch.zeros(1, 12, mix.numbers))[0]
    assert (k.diagonal() > 0.9).all()
    assert (k - torch.eye(12)).abs().sum(dim=-1).max() < 0.2


def test_the_kinds_of_k_differ_in_what_they_can_mix():
    def support(mixing) -> torch.Tensor:
        mix = token_mixing(mixing, GRID)
        return mix.matrix(torch.randn(1, 12, mix.numbers))[0].abs() > 1e-7

    assert support(FullMixing()).all()
    assert torch.equal(support(DiagonalMixing()), torch.eye(12, dtype=torch.bool))
    rows, columns = torch.arange(12) // 4, torch.arange(12) % 4
    near = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= 1
    for rule in ("free", "softmax"):
        assert torch.equal(support(LocalMixing(1, rule)), near)
    mix = token_mixing(LowRankMixing(2), GRID)
    k = mix.matrix(torch.randn(1, 12, mix.numbers))[0]
    assert torch.linalg.matrix_rank(k - torch.eye(12), atol=1e-4) == 2


# The step


@pytest.mark.parametrize("emission", EMISSIONS, ids=name)
@pytest.mark.parametrize("pooling", POOLINGS, ids=name)
def test_the_step_is_k_times_z_plus_d(pooling, emission):
    model = tokenizer(pooling=pooling, emission=emission)
    latent = model.infer(grids(), grids(1))
    assert latent.mean.shape == (5, 1, 4)
    torch.testing.assert_close(latent.sample(torch.randn(5, 1, 4)), latent.mean)
    k, d = model.decoder.matrix(grids(), latent.mean)
    assert k.shape == (5, 12, 12)
    torch.testing.assert_close(model.decoder(grids(), latent.mean), k @ grids() + d, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS, ids=name)
def test_both_frames_reach_the_latent_action(pooling):
    model = tokenizer(pooling=pooling)
    first = model.infer(grids(), grids(1)).mean
    for other in ((grids(2), grids(1)), (grids(), grids(2)), (grids(1), grids())):
        assert not torch.allclose(model.infer(*other).mean, first)


def test_only_the_mean_forgets_where():
    present, future = grids(), grids(1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for pooling in POOLINGS:
        model = tokenizer(pooling=pooling)
        same = torch.allclose(
            model.infer(present, future).mean, model.infer(present[:, order], future[:, order]).mean, atol=1e-6
        )
        assert same is isinstance(pooling, MeanPooling)


def test_it_starts_near_the_present():
    model = tokenizer()
    guess = model.decoder(grids(), torch.randn(5, 1, 4))
    assert (guess - grids()).square().mean() < 0.05 * (grids(1) - grids()).square().mean()


def test_by_token_does_not_grow_with_the_grid():
    def size(emission, grid) -> int:
        model = LatentActionTokenizer(LinearTransitionConfig(emission=emission), grid, 96)
        return sum(parameter.numel() for parameter in model.decoder.parameters())

    assert size(ByToken(), (16, 16)) == size(ByToken(), (8, 8))
    assert size(WholeGrid(), (16, 16)) > 3 * size(WholeGrid(), (8, 8))


def test_the_paper_s_dimensions():
    config = LinearTransitionConfig()
    assert (config.latent_width, config.hidden, config.layers) == (4, 256, 4)
    model = LatentActionTokenizer(replace(config, mixing=FullMixing(), emission=WholeGrid()), (16, 16), 96)
    last = model.decoder.emit.body[-1]
    assert (last.in_features, last.out_features) == (256, 256 * 256 + 256 * 96)
    layers = [module for module in model.encoder.body if isinstance(module, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [256, 256, 256, 4]


# Losses


@pytest.mark.parametrize("consistency", ["reversed", "round_trip", "antisymmetric", "none"])
def test_consistency_on_the_reversed_pair(consistency):
    model = tokenizer(consistency=consistency, consistency_weight=0.5).eval()
    losses, (present, future) = model.losses(pairs()), (grids(), grids(1))
    forth, back = model.infer(present, future).mean, model.infer(future, present).mean
    predicted = model.decoder(present, forth)

    def error(a, b):
        return (a - b).square().flatten(1).mean(dim=1)

    torch.testing.assert_close(losses.latent_action, forth)
    torch.testing.assert_close(losses.terms["forward"].value, error(predicted, future))
    expected = {
        "reversed": lambda: error(model.decoder(future, back), present),
        "round_trip": lambda: error(model.decoder(predicted, back), present),
        "antisymmetric": lambda: (forth + back).square().flatten(1).mean(dim=1),
    }
    assert set(losses.terms) == {"forward", consistency} - {"none"}
    if consistency != "none":
        term = losses.terms[consistency]
        torch.testing.assert_close(term.value, expected[consistency]())
        assert term.weight == 0.5


def test_another_kind_of_distance():
    config = LinearTransitionConfig(hidden=16)
    torch.manual_seed(0)
    model = LatentActionTokenizer(config, GRID, WIDTH, reconstruction="smooth_l1").eval()
    predicted = model.decoder(grids(), model.infer(grids(), grids(1)).mean)
    expected = reconstruction(predicted, grids(1), "smooth_l1").flatten(1).mean(dim=1)
    torch.testing.assert_close(model.losses(pairs()).terms["forward"].value, expected)


def test_a_masked_pair_has_no_say():
    def gradients(changed: torch.Tensor) -> list[torch.Tensor]:
        model = tokenizer().train()
        losses = model.losses(pairs(future=changed, valid=torch.tensor([True, True, True, False, True])))
        torch.stack([term.weight * term.mean() for term in losses.terms.values()]).sum().backward()
        return [p.grad for p in model.parameters()] + [model.scale.mean, model.scale.variance]

    junk = grids(1)
    junk[3] = 1e3
    for first, second in zip(gradients(grids(1)), gradients(junk), strict=True):
        torch.testing.assert_close(first, second)


def test_two_views_read_from_one_and_predict_in_the_other():
    model = tokenizer(consistency="none").eval()
    seen = pairs(decoded_present=grids(2), decoded_future=grids(3))
    latent = model.infer(grids(), grids(1)).mean
    expected = (model.decoder(grids(2), latent) - grids(3)).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(model.losses(seen).terms["forward"].value, expected)


def test_latent_actions_are_in_standard_units():
    model = tokenizer().train()
    for _ in range(3):
        told = model.losses(pairs()).latent_action.flatten(0, 1)
    assert model.scale.batches_seen == 3
    latent = model.eval().infer(grids(), grids(1)).mean.flatten(0, 1)
    for values in (told, latent):
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(values.std(dim=0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    # Whatever scale q chooses, f meets the same.
    before = model.losses(pairs()).terms["forward"].value
    with torch.no_grad():
        model.encoder.body[-1].weight.mul_(7.0)
        model.encoder.body[-1].bias.add_(3.0)
    model.train()
    model.scale.batches_seen.zero_()
    torch.testing.assert_close(model.losses(pairs()).terms["forward"].value, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("emission", EMISSIONS, ids=name)
def test_it_learns_what_moves(emission):
    """A bright token steps left or right: the step must be foreseen, and only under its own latent action."""
    torch.manual_seed(0)
    model = tokenizer(pooling=FlattenPooling(), emission=emission, hidden=32, mixing=LocalMixing())
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch(count: int = 32) -> tuple[FramePairs, torch.Tensor]:
        row, column = (torch.randint(low, high, (count,), generator=generator) for low, high in ((0, 3), (1, 3)))
        step = 2 * torch.randint(0, 2, (count,), generator=generator) - 1
        frames = torch.zeros(2, count, 12, WIDTH)
        for index, at in enumerate((column, column + step)):
            frames[index, torch.arange(count), 4 * row + at] = 2.0
        return FramePairs(present=frames[0], future=frames[1], valid=torch.ones(count, dtype=torch.bool)), step

    for _ in range(75):
        losses = model.losses(batch()[0])
        optimizer.zero_grad()
        torch.stack([term.mean() for term in losses.terms.values()]).sum().backward()
        optimizer.step()
    held_out, step = batch(64)
    model.eval()
    own = model.losses(held_out).terms["forward"].mean()
    assert own < 0.4 * (held_out.present - held_out.future).square().mean()
    # Under the latent actions of the other direction, the prediction must follow them and be wrong.
    latent = model.infer(held_out.present, held_out.future).mean
    wrong = latent.clone()
    wrong[step > 0], wrong[step < 0] = latent[step < 0].mean(dim=0), latent[step > 0].mean(dim=0)
    assert (model.decoder(held_out.present, wrong) - held_out.future).square().mean() > 1.5 * own


# One interface

LAM = LatentActionConfig(
    width=16, heads=2, encoder_layers=1, decoder_layers=1, latent_width=4, max_state_dim=0, embodiments=2
)


@pytest.mark.parametrize("config", [LAM, LinearTransitionConfig(hidden=16)], ids=["lam", "linear"])
def test_both_kinds_keep_the_contract(config):
    torch.manual_seed(0)
    model = latent_dynamics(config, GRID, WIDTH)
    assert isinstance(model, LatentActionModel if config is LAM else LatentActionTokenizer)
    assert isinstance(model, LatentDynamics)
    latent = model.infer(grids(), grids(1))
    assert isinstance(latent, Posterior)
    assert latent.mean.shape == (5, model.queries, model.latent_width)
    assert model.decoder(grids(), latent.mean).shape == grids().shape
    clip = torch.stack([grids(seed) for seed in range(3)], dim=1)
    along = infer_along(model, clip)
    torch.testing.assert_close(along[:, 1], model.infer(clip[:, 1], clip[:, 2]).mean)
    rolled = predict_along(model, clip[:, 0], along)
    torch.testing.assert_close(rolled[:, 1], model.decoder(rolled[:, 0], along[:, 1]))
    valid = torch.tensor([[True, True, True]] * 4 + [[True, True, False]])
    losses = model.losses(FramePairs.consecutive(clip, valid), torch.Generator().manual_seed(0))
    for term in losses.by_sample(5).values():
        assert term.value.shape == (5,)
        assert term.valid.all()
    first = next(iter(losses.terms))
    by_pair = losses.terms[first].value
    torch.testing.assert_close(losses.by_sample(5)[first].value[4], by_pair[8])
    torch.testing.assert_close(losses.by_sample(5)[first].value[0], by_pair[:2].mean())
    torch.stack([term.weight * term.mean() for term in losses.terms.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(LatentActionError, match="these clips have 1"):
        infer_along(model, clip[:, :1])
    with pytest.raises(LatentActionError, match="these clips have 1"):
        FramePairs.consecutive(clip[:, :1], valid[:, :1])


def test_lawam_s_kind_in_standard_units_is_trained_alike():
    torch.manual_seed(0)
    plain = LatentActionModel(LAM, GRID, WIDTH)
    torch.manual_seed(0)
    standard = latent_dynamics(replace(LAM, max_state_dim=5), GRID, WIDTH).train()
    assert standard.state_predictor is None
    with torch.no_grad():
        for model in (plain, standard):
            model.posterior.mean.weight.mul_(5.0)
            generator = torch.Generator().manual_seed(1)
            # Or LaWM's gates would still be shut, and the latent action would have no say.
            for parameter in (p for name, p in model.named_parameters() if "modulation" in name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for _ in range(3):
        first, second = (m.losses(pairs(), torch.Generator().manual_seed(0)) for m in (plain, standard))
        for name, term in first.terms.items():
            assert torch.equal(term.value, second.terms[name].value)
            assert term.weight == second.terms[name].weight
    assert standard.decoder.scale.batches_seen == 3
    own, outside = plain.infer(grids(), grids(1)), standard.infer(grids(), grids(1))
    scale = standard.decoder.scale
    torch.testing.assert_close(scale.restore(outside.mean), own.mean)
    noise = torch.randn(5, 1, 4)
    torch.testing.assert_close(scale.restore(outside.sample(noise)), own.sample(noise))
    torch.testing.assert_close(standard.decoder(grids(), outside.mean), plain.decoder(grids(), own.mean))


def test_configs_go_through_json_with_their_kinds():
    for pooling in POOLINGS:
        for mixing in MIXINGS:
            config = LinearTransitionConfig(pooling=pooling, mixing=mixing, emission=ByToken())
            assert from_dict(LinearTransitionConfig, to_dict(config)) == config


def test_too_shallow_an_mlp_is_refused():
    with pytest.raises(LatentActionError, match="at least two layers"):
        tokenizer(layers=1)
