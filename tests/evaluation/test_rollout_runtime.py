"""``wam eval --runtime``: the same episodes as without it, up to rounding."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

# Worker processes must find the fake world too: they inherit this path.
sys.path.insert(0, str(Path(__file__).parent))
from fake_world import FakeFactory
from micro_policy import micro_policy

from wamkit.evaluation.arms import PolicyArm
from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.inference.runtime import RuntimeSettings


def test_episodes_through_the_runtime_are_those_without_it(tmp_path):
    settings = RolloutSettings(n_episodes=3, workers=1, batch_size=2, n_action_steps=2, timeout_s=60)
    fast = RuntimeSettings(precision="fp32", batch_sizes=(2,), text_tokens=(16,))
    found = {}
    for name, runtime in (("plain", False), ("fast", fast)):
        policy = micro_policy(10.0, scale=0.01, action_dim=1, runtime=runtime)
        assert (policy.runtime is not None) is (name == "fast")
        found[name] = rollout([PolicyArm(policy)], "line-a", FakeFactory(max_steps=8), tmp_path / name, settings)
        if policy.runtime is not None:
            assert len(policy.runtime.reports()) == 1, "the episodes went through the runtime"
    paths = {name: [np.array(episode["path"]) for episode in episodes] for name, episodes in found.items()}
    for plain, other in zip(found["plain"], found["fast"], strict=True):
        assert [plain[key] for key in ("trial", "success", "steps", "replans")] == [
            other[key] for key in ("trial", "success", "steps", "replans")
        ]
    for plain, other in zip(paths["plain"], paths["fast"], strict=True):
        np.testing.assert_allclose(other, plain, atol=1e-5)
        assert np.abs(plain[-1, 0] - plain[0, 0]) > 1e-3, "it moved"
    assert np.abs(paths["plain"][0][-1] - paths["plain"][1][-1]).max() > 1e-3, "as far as it should"
