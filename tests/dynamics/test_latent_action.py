"""The latent-action model: who sees what, what starts where. Its arithmetic: tests/models/test_lawam_convert.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.dynamics.latent_action import LatentActionConfig, LatentActionModel, Posterior

CONFIG = LatentActionConfig(
    width=32, heads=4, encoder_layers=2, decoder_layers=2, latent_width=8, max_state_dim=5, embodiments=3
)
GRID, FEATURES = (3, 4), 32


@pytest.fixture
def lam() -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel(CONFIG, GRID, FEATURES)


def grids(seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.layer_norm(
        torch.randn(2, 12, FEATURES, generator=torch.Generator().manual_seed(seed)), (FEATURES,)
    )


def test_shapes(lam):
    posterior = lam.infer(grids(), grids(1))
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 1, 8)
    assert lam.decoder(grids(), posterior.mean).shape == (2, 12, FEATURES)


def test_patches_do_not_see_the_query(lam):
    seen = []
    lam.encoder.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    lam.infer(grids(), grids(1))
    torch.nn.init.normal_(lam.encoder.start.query, std=5.0)
    lam.infer(grids(), grids(1))
    assert torch.equal(seen[0][:, :-1], seen[1][:, :-1])
    assert not torch.equal(seen[0][:, -1:], seen[1][:, -1:])


def test_both_frames_reach_the_latent_action(lam):
    first = lam.infer(grids(), grids(1)).mean
    assert not torch.allclose(lam.infer(grids(2), grids(1)).mean, first)
    assert not torch.allclose(lam.infer(grids(), grids(2)).mean, first)
    assert not torch.allclose(lam.infer(grids(1), grids()).mean, first)


def test_log_variance_is_clamped(lam):
    torch.nn.init.constant_(lam.posterior.log_variance.bias, 1e3)
    assert lam.infer(grids(), grids(1)).log_variance.max() == 10.0


def test_sampling_is_reparameterised():
    mean, log_variance = torch.zeros(1, 1, 2, requires_grad=True), torch.log(torch.tensor([[[4.0, 9.0]]]))
    sample = Posterior(mean, log_variance).sample(torch.ones(1, 1, 2))
    torch.testing.assert_close(sample, torch.tensor([[[2.0, 3.0]]]))
    sample.sum().backward()
    assert mean.grad.tolist() == [[[1.0, 1.0]]]


def test_lawm_starts_near_the_present(lam):
    guess = lam.decoder(grids(), torch.randn(2, 1, 8))
    assert (guess - grids()).square().mean() < 0.2 * (grids(1) - grids()).square().mean()


def test_the_latent_action_moves_the_prediction_once_trained(lam):
    latent = torch.randn(2, 1, 8)
    assert torch.equal(lam.decoder(grids(), latent), lam.decoder(grids(), -latent))
    for block in lam.decoder.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.5)
    assert not torch.allclose(lam.decoder(grids(), latent), lam.decoder(grids(), -latent))


@pytest.mark.parametrize("readout", ["per_embodiment", "shared"])
def test_state_predictor(readout):
    lam = LatentActionModel(replace(CONFIG, state_readout=readout), GRID, FEATURES)
    who = torch.tensor([2, 1])
    change = lam.state_predictor(torch.randn(2, 1, 8), torch.randn(2, 5), who)
    assert change.shape == (2, 5)
    assert change.abs().max() < 1
    change.sum().backward()
    used = lam.state_predictor.state_in.weight.grad.abs().sum(dim=(1, 2)) > 0
    assert used.tolist() == [False, True, True]
    assert len(lam.state_predictor.leave.weight) == (3 if readout == "per_embodiment" else 1)


def test_position_codes_are_not_weights(lam):
    overlaid = LatentActionModel(replace(CONFIG, position_code="overlaid"), GRID, FEATURES)
    assert overlaid.state_dict().keys() == lam.state_dict().keys()
    assert not torch.equal(overlaid.decoder.position, lam.decoder.position)
