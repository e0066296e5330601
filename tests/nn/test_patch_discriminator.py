"""The discriminator: published size, patches, and gradients that stop where they should."""

from __future__ import annotations

import torch

from wamkit.nn.patch_discriminator import DiscriminatorConfig, PatchDiscriminator


def test_published_receptive_field_and_size():
    """PatchGAN's 70 x 70 network (arXiv 1611.07004): 256 pixels give 30 x 30 scores, about 2.8 M parameters."""
    with torch.device("meta"):
        network = PatchDiscriminator(DiscriminatorConfig())
        scores = network(torch.empty(1, 3, 256, 256))
    assert scores.shape == (1, 1, 30, 30)
    assert abs(sum(p.numel() for p in network.parameters()) / 2.77e6 - 1) < 0.01


def test_pictures_are_judged_alone_and_gradients_stop():
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(width=4, layers=2))
    pictures = torch.randn(3, 3, 32, 32, requires_grad=True)
    scores = network(pictures)
    torch.testing.assert_close(scores[1:2], network(pictures[1:2]))
    frozen = network.with_frozen_weights(pictures)
    torch.testing.assert_close(frozen, scores)
    frozen.sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
