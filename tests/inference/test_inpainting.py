"""A policy goes on from a plan: in physical units, sample by sample, for models that can; and a policy as a source."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.normalize import Normalizer
from wamkit.errors import WamkitError
from wamkit.inference.execution import Hold, RealTimeChunking
from wamkit.inference.execution_loop import Blocking, ControlLoop, InpaintingSource
from wamkit.inference.execution_policy import policy_source
from wamkit.inference.policy import Policy, PolicyError
from wamkit.models.lawam import LaWAM, preset

RATE = 80.0
CHUNK = 16
MEAN, STD = np.array([0.5, -0.2, 0.0, 0.1]), np.array([2.0, 0.5, 1.0, 0.3])


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    config = preset("tiny")
    config = dataclasses.replace(config, action=dataclasses.replace(config.action, layers=4, denoise_steps=5))
    unit = {"mean": np.zeros(4), "std": np.ones(4)}
    normalizer = Normalizer({"metaworld": {"observation.state": unit, "action": {"mean": MEAN, "std": STD}}})
    body = BodyContract(embodiment="metaworld", statistics="metaworld", rate_hz=RATE, cameras=())
    contract = Contract(cameras=(), resolution=(128, 128), resize="stretch", horizon_s=0.2, bodies=(body,))
    return Policy(LaWAM(config).eval(), normalizer, contract, precision="fp32")


def seen(seed: int) -> dict:
    picture = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return {
        "observation.images.corner2_near": picture,
        "observation.state": np.zeros(4, np.float32),
        "task": "open the door",
    }


def plan(rows: int, seed: int = 9) -> np.ndarray:
    return (MEAN + STD * np.random.default_rng(seed).normal(size=(rows, 4))).astype(np.float32)


def test_without_a_plan_it_is_the_plain_chunk(policy):
    observations = [seen(0), seen(1)]
    plain = policy.act_batch(observations, seeds=[5, 6])
    free = policy.inpaint_batch(observations, [None, None], [0, 0], seeds=[5, 6])
    np.testing.assert_allclose(free, plain, rtol=1e-5, atol=1e-5)


def test_the_prefix_is_the_plan_and_the_overlap_is_drawn_to_it(policy):
    old = plan(12)
    (plain,) = policy.act_batch([seen(0)], seeds=[5])
    (chunk,) = policy.inpaint_batch([seen(0)], [old], [4], seeds=[5])
    assert chunk.shape == plain.shape == (CHUNK, 4)
    np.testing.assert_array_equal(chunk[:4], old[:4])

    def distance(actions, rows):
        return np.abs((actions[rows] - old[rows]) / STD).mean()

    # Most where the weight is greatest; measured on what the decoder gave, not on what was frozen.
    near, far = slice(4, 7), slice(9, 12)
    assert distance(chunk, near) < 0.8 * distance(plain, near)
    assert distance(chunk, near) / distance(plain, near) < distance(chunk, far) / distance(plain, far)


def test_samples_of_a_batch_do_not_mix(policy):
    observations, plans, delays = [seen(0), seen(1), seen(2)], [plan(12), None, plan(5, 3)], [4, 0, 5]
    together = policy.inpaint_batch(observations, plans, delays, seeds=[1, 2, 3])
    for index in range(3):
        alone = policy.inpaint_batch(
            observations[index : index + 1], plans[index : index + 1], delays[index : index + 1], seeds=[1 + index]
        )
        np.testing.assert_allclose(together[index], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("plans", "delays", "message"),
    [
        ([plan(17)], [0], r"17 actions, 0 of them frozen.*chunk of 16"),
        ([plan(3)], [4], r"3 actions, 4 of them frozen"),
        ([None], [1], r"0 actions, 1 of them frozen"),
        ([None, None], [0], "as many plans and delays"),
    ],
)
def test_plans_that_do_not_fit_are_refused(policy, plans, delays, message):
    with pytest.raises(PolicyError, match=message):
        policy.inpaint([seen(0)], plans, delays)


def test_models_that_cannot_say_so(policy, monkeypatch):
    monkeypatch.setattr(LaWAM, "capabilities", dataclasses.replace(LaWAM.capabilities, inpaints_actions=False))
    with pytest.raises(WamkitError, match="cannot in-paint"):
        policy.inpaint([seen(0)], [None], [0])
    assert not isinstance(policy_source(policy), InpaintingSource)


def test_a_policy_under_real_time_chunking(policy):
    source = policy_source(policy, seed=3)
    assert isinstance(source, InpaintingSource)
    told: list[np.ndarray] = []

    def played() -> np.ndarray:
        loop = ControlLoop(source, RealTimeChunking(Hold((0.0,) * 4), 8), rate_hz=RATE, thinking=Blocking())
        loop.reset()
        return np.stack([loop.act(seen(0)) for _ in range(20)])

    original = policy.model.executed
    policy.model.executed = lambda actions: told.append(actions.numpy())
    try:
        first, second = played(), played()
    finally:
        policy.model.executed = original
    assert np.isfinite(first).all()
    assert not np.array_equal(first, second), "another episode draws other noise"
    assert [len(actions[0]) for actions in told] == [8, 8, 8, 8]
    np.testing.assert_allclose(told[0][0][:, :4], (first[:8] - MEAN) / STD, rtol=1e-4, atol=1e-5)
    again = policy_source(policy, seed=3)
    again.reset()
    np.testing.assert_allclose(again(seen(0))[:8], first[:8], rtol=1e-5, atol=1e-5)
