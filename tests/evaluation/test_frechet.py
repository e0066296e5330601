"""The Frechet distance against its closed form, and networks that are called as the published ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wamkit.evaluation.frechet import (
    FrechetError,
    frechet_distance,
    load_network,
    picture_features,
    video_features,
)


def test_of_independent_gaussians_it_is_what_their_moments_say():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(4000, 3))
    white = (white - white.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    one = white * [1.0, 2.0, 3.0]
    other = white[:, [0, 1, 2]] * [2.0, 2.0, 1.0] + [1.0, 0.0, -2.0]
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(one, other) == pytest.approx(5.0 + 1.0 + 0.0 + 4.0, rel=1e-6)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-6)


def test_fewer_features_than_samples_are_not_needed():
    rng = np.random.default_rng(0)
    assert frechet_distance(rng.normal(size=(3, 20)), rng.normal(size=(4, 20))) > 0
    with pytest.raises(FrechetError, match="at least two samples"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))


class Pictures(torch.nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.float().mean(dim=(2, 3)) if return_features else x.float()


class Videos(torch.nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x.mean(dim=(3, 4)).flatten(1) if rescale and resize and return_features else x


def test_networks_are_torchscript_files(tmp_path):
    clips = torch.randint(0, 256, (3, 5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kind in (Pictures, Videos):
        torch.jit.script(kind()).save(str(tmp_path / f"{kind.__name__}.pt"))
    pictures = picture_features(load_network(tmp_path / "Pictures.pt"), clips.flatten(0, 1), batch=4)
    np.testing.assert_allclose(pictures, clips.flatten(0, 1).float().mean(dim=(2, 3)), rtol=1e-5)
    videos = video_features(load_network(tmp_path / "Videos.pt"), clips, batch=2)
    np.testing.assert_allclose(videos, clips.transpose(1, 2).float().mean(dim=(3, 4)).flatten(1), rtol=1e-5)
    with pytest.raises(FrechetError, match="give the network's file"):
        load_network(tmp_path / "none.pt")
