"""Policies with a memory in an evaluation: every episode's own, told the truth, whatever the batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from wamkit.evaluation.arms import BlindArm, PolicyArm
from wamkit.evaluation.rollout import FORWARD_SIZE, RolloutSettings, rollout

sys.path.insert(0, str(Path(__file__).parent))
from fake_world import FakeFactory


class RememberingPolicy:
    """Knows of each episode where it began and what was executed, and checks both against what it is shown."""

    remembers, picture_interval_s = True, 0.2  # every second action of the fake world

    def __init__(self) -> None:
        self.rows: tuple | None = None
        self.batches: list[int] = []
        self.pictures: list[int] = []

    def reset(self):
        self.rows = None

    def recall(self, rows):
        self.rows = rows

    def remember(self):
        return self.rows

    def executed(self, actions):
        ((x, seen),) = self.rows
        self.rows = ((x + float(np.sum(actions)), seen),)

    def observed(self, observations):
        ((x, seen),) = self.rows
        states = [float(o["observation.state"][0]) for o in observations]
        self.rows = ((x, (*seen, *states)),)

    def act_batch(self, observations, *, seeds):
        self.batches.append(len(observations))
        rows, chunks = [], []
        for row, observation, seed in zip(self.rows, observations, seeds, strict=True):
            now = float(observation["observation.state"][0])
            x, seen = (now, ()) if row is None else row
            assert now == pytest.approx(x, abs=1e-5)
            assert all(min(x, now) - 0.5 <= place <= max(x, now) + 0.5 for place in seen)
            self.pictures.append(len(seen))
            rows.append((x, ()))
            # Some reach further than the world lets them: what is remembered is what it made of them.
            noise = np.random.default_rng(seed).normal(0, 0.05, (5, 1))
            chunks.append((0.04 + noise).astype(np.float32))
        self.rows = tuple(rows)
        return np.stack(chunks)


class ForgetfulPolicy:
    """Always goes on at one speed."""

    def reset(self):
        pass

    def act_batch(self, observations, *, seeds):
        return np.full((len(observations), 5, 1), 0.04, np.float32)


def run(folder, *, batch_size: int, arm=PolicyArm):
    policy = RememberingPolicy()
    sizes = {"batch_size": batch_size, "forward_size": batch_size if batch_size > 1 else None}
    settings = RolloutSettings(n_episodes=4, workers=1, n_action_steps=5, timeout_s=20, **sizes)
    episodes = rollout([arm(policy)], "line-a", FakeFactory(), folder, settings)
    return policy, [{key: value for key, value in episode.items() if key != "seconds"} for episode in episodes]


def test_each_episode_is_remembered_by_itself(tmp_path):
    alone, few = run(tmp_path / "one", batch_size=1)
    together, many = run(tmp_path / "many", batch_size=3)
    assert set(alone.batches) == {1}
    assert max(together.batches) > 1
    assert few == many
    # Between two chunks of five actions it looks after the second and the fourth; at an episode's start not at all.
    assert set(alone.pictures) == {0, 2}
    assert alone.pictures.count(0) == 4


def test_the_record_says_in_which_groups_it_was_computed(tmp_path):
    """One by one where nothing was asked for, beside a policy without a memory in the usual groups."""
    arms = [PolicyArm(RememberingPolicy(), "remembering"), PolicyArm(ForgetfulPolicy(), "forgetful")]
    for asked, used in ((None, {"remembering": 1, "forgetful": FORWARD_SIZE}), (3, {"remembering": 3, "forgetful": 3})):
        settings = RolloutSettings(n_episodes=1, workers=1, n_action_steps=5, timeout_s=20, forward_size=asked)
        rollout(arms, "line-a", FakeFactory(), tmp_path / str(asked), settings)
        first, *_ = (tmp_path / str(asked) / "episodes.jsonl").read_text().splitlines()
        assert json.loads(first)["forward_size"] == used


def test_pictures_on_the_way_are_prepared_like_all_others(tmp_path):
    policy, episodes = run(tmp_path / "blind", batch_size=2, arm=BlindArm)
    assert len(episodes) == 4
    assert set(policy.pictures) == {0, 2}
