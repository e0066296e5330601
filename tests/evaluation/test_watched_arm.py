"""A watched arm: each look of the policy is compared with what was imagined for it, episode by episode."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

# Worker processes must find the fake world too: they inherit this path.
sys.path.insert(0, str(Path(__file__).parent))
from fake_world import FakeFactory

from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.evaluation.watched_arm import WatchedArm, WatchedPolicy, alarm_lines, alarm_rates, surprises_of
from wamkit.inference.monitor_calibration import Calibration, MonitorError, Scale
from wamkit.types import ActionChunk, Future

STEP, CHUNK, RATE = 0.05, 4, 10.0


class Foreseeing:
    """Goes on by the same step and expects to get a little farther than it does; counts its passes."""

    remembers = False
    picture_interval_s = None

    def __init__(self, *, along: bool = True, imagines: tuple[str, ...] = ("features",)) -> None:
        self.along, self.imagined_apart = along, 0
        self.model = SimpleNamespace(name="foreseeing", capabilities=SimpleNamespace(imagines=imagines))

    def reset(self) -> None: ...

    def imagine(self, observations, *, embodiment=None) -> Future:
        self.imagined_apart += 1
        return self._future(observations)

    def _future(self, observations) -> Future:
        x = torch.tensor([float(entry["observation.state"][0]) for entry in observations]).view(-1, 1, 1)
        times = torch.full((len(x), 1), CHUNK / RATE)
        return Future(space="features", values=(x + CHUNK * STEP + 0.05)[:, None], times=times, present=x)

    def act(self, observations, *, seeds) -> ActionChunk:
        shape = len(observations), CHUNK
        return ActionChunk(
            actions=torch.full((*shape, 1), STEP),
            times=torch.zeros(shape),
            valid=torch.ones(shape, dtype=torch.bool),
            imagined=self._future(observations) if self.along else None,
        )


def calibration(threshold: float) -> Calibration:
    return Calibration(Scale("horizon", {"400": 0.0025}), threshold, 0.1, memory=1, episodes=9)


def test_every_look_is_compared_also_in_an_episode_that_began_again(tmp_path):
    policy = Foreseeing()
    arm = WatchedArm(WatchedPolicy(policy), calibration(2.0))
    factory = FakeFactory(folder=str(tmp_path), faults=(("line-a", 1, 6, "raise", 1),), max_steps=18)
    settings = RolloutSettings(n_episodes=3, workers=1, batch_size=2, timeout_s=60)
    episodes = rollout([arm], "line-a", factory, tmp_path / "out", settings)
    assert episodes[1]["retries"] == 1
    for episode in episodes:
        found = surprises_of(episode)
        # Looks after 0, 4, 8, ... steps; the first has nothing to be compared with.
        assert [s.at for s in found] == pytest.approx([0.4 * look for look in range(1, episode["replans"])])
        assert len(found) >= 2
        np.testing.assert_allclose([s.error for s in found], 0.05**2, rtol=1e-3)
        np.testing.assert_allclose([s.change for s in found], (CHUNK * STEP) ** 2, rtol=1e-3)
        assert episode["alarms_s"] == []
    assert policy.imagined_apart == 0


def looks(arm: WatchedArm, every: float, count: int = 3) -> dict:
    for look in range(count):
        arm.policy.act_batch([{"observation.state": np.array([CHUNK * STEP * look, 0.0])}], seeds=[0])
        arm.acted("line-a", 0, look * every, 0)
    return arm.notes("line-a", 0)


def test_an_alarm_is_noted_with_its_time_and_without_a_calibration_there_is_none():
    policy = Foreseeing(along=False)
    noted = looks(WatchedArm(WatchedPolicy(policy), calibration(0.5)), 0.4)
    assert noted["alarms_s"] == [0.4, 0.8]
    assert policy.imagined_apart == 3, "a model that hands out nothing while acting is asked apart"
    assert "alarms_s" not in looks(WatchedArm(WatchedPolicy(policy)), 0.4)


def test_what_comes_in_another_space_is_decoded():
    """As of a video model: latents while it acts, pictures where it is asked."""
    policy = Foreseeing(imagines=("pixels",))
    policy.decoded = lambda future, observations, *, embodiment=None: replace(future, values=future.values + 10.0)
    watched = WatchedPolicy(policy)
    watched.act_batch([{"observation.state": np.array([0.5, 0.0])}], seeds=[0])
    assert watched.imagined[0].values.item() == pytest.approx(0.5 + CHUNK * STEP + 0.05 + 10.0)
    assert policy.imagined_apart == 0


def test_looks_that_no_prediction_falls_on_are_refused_with_what_to_do():
    with pytest.raises(MonitorError, match=r"imagines 0\.4 s ahead and no look falls on such a moment.*n_action_steps"):
        looks(WatchedArm(WatchedPolicy(Foreseeing())), 0.3)


def test_a_model_that_imagines_nothing_is_refused():
    with pytest.raises(MonitorError, match="imagines nothing"):
        WatchedPolicy(Foreseeing(imagines=()))


def test_alarms_are_counted_apart_for_successes_and_failures():
    episodes = [{"success": index < 8, "alarms_s": [0.4] if index in (0, 8, 9) else []} for index in range(10)]
    rates = alarm_rates(episodes, calibration(0.5))
    assert (rates["successful"]["successes"], rates["successful"]["n"]) == (1, 8)
    assert (rates["failed"]["successes"], rates["failed"]["n"]) == (2, 2)
    assert alarm_lines(rates)[0].startswith("alarms in 1 of 8 successful episodes [2, 47] %")
    assert "at most 10 %" in alarm_lines(rates)[0]
    assert alarm_rates(episodes[:8], calibration(0.5))["failed"] is None
