from __future__ import annotations

import pickle

import numpy as np
import pytest

from wamkit.envs.base import EnvSpec
from wamkit.evaluation.arms import (
    MID_GREY,
    BlindArm,
    EvaluationError,
    ExpertArm,
    NoOpArm,
    PolicyArm,
    RandomArm,
    SwappedInstructionArm,
)

SPEC = EnvSpec(
    name="fake",
    task="a",
    instruction="do a",
    cameras={"front": (4, 6)},
    state_names=("x",),
    action_names=("dx", "dy"),
    action_low=(-1.0, 0.5),
    action_high=(1.0, 2.0),
    rate_hz=10.0,
    max_steps=5,
    embodiment="metaworld",
)


class World:
    description = SPEC

    def expert_action(self, rng):
        return np.array([0.25, 1.0], np.float32)


def test_actors_stay_within_bounds_and_travel():
    rng = np.random.default_rng(0)
    for arm in (NoOpArm(), RandomArm(), ExpertArm()):
        copy = pickle.loads(pickle.dumps(arm))
        assert copy == arm
        action = copy.act(World(), rng)
        assert action.shape == (2,)
        assert (action >= SPEC.action_low).all()
        assert (action <= SPEC.action_high).all()
    np.testing.assert_array_equal(NoOpArm().act(World(), rng), [0.0, 0.5])  # zero where the bounds allow it
    draws = [RandomArm().act(World(), np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_blind_replaces_pictures_and_leaves_the_rest():
    observation = {"observation.state": np.ones(1, np.float32), "task": "do a"}
    shown = BlindArm(None).prepare(observation, "a", 0, SPEC)
    assert shown["observation.images.front"].shape == (4, 6, 3)
    assert (shown["observation.images.front"] == MID_GREY).all()
    assert shown["observation.state"] is observation["observation.state"]
    assert not BlindArm(None).needs_images
    assert PolicyArm(None).needs_images
    assert PolicyArm(None).prepare(observation, "a", 0, SPEC) is observation


def test_swapped_instructions_come_from_every_other_task_in_turn():
    arm = SwappedInstructionArm(None, {"a": "do a", "b": "do b", "c": "do c"})
    assert [arm.told("a", trial) for trial in range(4)] == ["b", "c", "b", "c"]
    assert [arm.told("c", trial) for trial in range(2)] == ["a", "b"]
    shown = arm.prepare({"task": "do b", "observation.state": 1}, "b", 0, SPEC)
    assert shown == {"task": "do c", "observation.state": 1}
    assert arm.notes("b", 1) == {"told_task": "a", "told_instruction": "do a"}
    with pytest.raises(EvaluationError, match="two tasks"):
        SwappedInstructionArm(None, {"a": "do a"})
    with pytest.raises(EvaluationError, match="no instruction for d"):
        arm.told("d", 0)
