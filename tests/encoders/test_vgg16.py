"""The perceptual network: torchvision's layout, LPIPS's numbers, and what it says where the file is not right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wamkit.encoders.vgg16 import VGG16, PerceptualWeightsError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights in torchvision's layout; its classifier, 120 M of zeros, is left out."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):
        names = vgg16(weights=None).features.state_dict()
    stored = {f"features.{name}": torch.randn(value.shape) * 0.05 for name, value in names.items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(stored | {"classifier.0.weight": torch.zeros(1)}, path)
    return path


def test_it_is_lpips_as_torchmetrics_computes_it(weights, monkeypatch):
    from torchmetrics.functional.image import lpips

    network = VGG16(weights)
    # Its own way to the layers would fill all of VGG16 with noise, which takes seconds.
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda name, pretrained: network.layers)
    reference = lpips._LPIPS(net="vgg", pnet_rand=True)
    made, real = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    distance = network(made.requires_grad_(), real)
    torch.testing.assert_close(distance, reference(made, real).flatten(), rtol=1e-4, atol=1e-6)
    distance.sum().backward()
    assert made.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_what_is_no_vgg16_says_so(tmp_path):
    with pytest.raises(PerceptualWeightsError, match="no file"):
        VGG16(tmp_path / "none.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    with pytest.raises(PerceptualWeightsError, match="is it whole"):
        VGG16(broken)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(PerceptualWeightsError, match=r"cut.safetensors cannot be read .*: copy it again"):
        VGG16(cut)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, broken)
    with pytest.raises(PerceptualWeightsError, match=r"features.0.bias is missing"):
        VGG16(broken)
