"""A live camera's pictures reach the model as the recordings' did, whatever their size."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.frames import resize_frames
from wamkit.data.normalize import Normalizer
from wamkit.inference.policy import Policy, PolicyError


def policy(rule: str) -> Policy:
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(cameras=("front",))  # type: ignore[assignment]
    body = BodyContract(embodiment="custom", statistics="custom", rate_hz=10.0, cameras=())
    contract = Contract(cameras=(("front", (48, 64)),), resolution=(32, 32), resize=rule, horizon_s=0.4, bodies=(body,))
    return Policy(model, Normalizer({}), contract, precision="fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
def test_pictures_are_resized_by_the_contract(rule):
    pictures = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        for i, size in enumerate([(48, 64), (120, 160), (32, 32)])
    ]
    seen = policy(rule).observation([{"observation.images.front": picture} for picture in pictures])
    assert seen.images["front"].shape == (3, 3, 32, 32)
    for picture, image in zip(pictures, seen.images["front"], strict=True):
        assert torch.equal(image, resize_frames(picture[None], (32, 32), rule)[0])
    assert np.array_equal(seen.images["front"][2].permute(1, 2, 0).numpy(), pictures[2])


@pytest.mark.parametrize("picture", [np.zeros((3, 48, 64), np.uint8), np.zeros((48, 64, 3), np.float32)])
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(PolicyError, match=r"must be uint8 \[H, W, 3\]"):
        policy("stretch").observation([{"observation.images.front": picture}])
