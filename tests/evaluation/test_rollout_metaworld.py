from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("metaworld")

from wamkit.envs.registry import make_env
from wamkit.envs.rendering import choose_backend
from wamkit.evaluation.arms import BlindArm, ExpertArm, NoOpArm, PolicyArm
from wamkit.evaluation.episode_video import VideoSettings
from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.evaluation.workers import EnvFactory

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(choose_backend() == "disable", reason="no EGL and no OSMesa on this machine"),
]


class Reacher:
    """Goes to where the button is, which it reads off the picture's red pixels; blind, it stays."""

    def reset(self):
        self.pictures = []

    def act_batch(self, observations, *, seeds):
        chunks = []
        for observation in observations:
            picture = observation["observation.images.topview"].astype(int)
            self.pictures.append(picture)
            red = (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
            red[picture.shape[0] // 2 :] = False
            column = np.nonzero(red)[1].mean() if red.any() else picture.shape[1] / 2
            chunks.append(np.tile([np.sign(column - picture.shape[1] / 2) * 0.5, 0, 0, 0], (8, 1)))
        return np.array(chunks, np.float32)


def test_closed_loop_in_metaworld(tmp_path):
    task = "button-press-topdown-v3"
    policy = Reacher()
    options = {"resolution": 64, "cameras": ("topview",), "max_steps": 80}
    episodes = rollout(
        [ExpertArm(), NoOpArm(), PolicyArm(policy), BlindArm(policy)],
        task,
        EnvFactory("metaworld", options),
        tmp_path,
        RolloutSettings(n_episodes=3, workers=2, batch_size=3),
        videos=VideoSettings(trials=1, arms=("expert",), resolution=64, every=8),
    )
    by_arm = {arm: [e for e in episodes if e["arm"] == arm] for arm in ("expert", "no_op", "policy", "blind")}
    assert [e["success"] for e in by_arm["expert"]] == [True] * 3
    assert all(50 <= e["steps"] < 80 for e in by_arm["expert"])
    assert [e["success"] for e in by_arm["no_op"]] == [False] * 3
    assert all(e["steps"] == 80 and e["replans"] == 10 for e in by_arm["policy"])
    assert (tmp_path / by_arm["expert"][0]["video"]).stat().st_size > 1000
    # The pictures that reached the policy lead the hand to the button's side, and grey ones nowhere.
    for seeing, blind in zip(by_arm["policy"], by_arm["blind"], strict=True):
        env = make_env("metaworld", task)
        env.reset_trial(seeing["trial"], render=False)
        button = env.privileged_state()["object_positions"][0, 0]
        env.close()
        assert np.sign(seeing["path"][-1][0]) == np.sign(button)
        assert abs(seeing["path"][-1][0]) > 0.03
        assert abs(blind["path"][-1][0]) < 0.02
