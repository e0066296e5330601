"""A local policy as the source of an executor's chunks.

loop = ControlLoop(policy_source(wamkit.load(path)), RealTimeChunking(hold, 8), rate_hz=80.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wamkit.inference.policy import Policy


class PolicySource:
    """One robot's chunks from a policy; every call draws its own noise.

    Args:
        policy: Loaded with `wamkit.load`.
        seed: Of the noise; the same seed and observations give the same chunks.
    """

    def __init__(self, policy: Policy, *, seed: int = 0) -> None:
        self.policy, self.seed = policy, seed
        self._episode = self._call = 0

    def __call__(self, observation: Mapping[str, Any]) -> np.ndarray:
        """A chunk, float32 [K, A] in physical units."""
        return self.policy.act_batch([dict(observation)], seeds=[self._next_seed()])[0]

    def executed(self, actions: np.ndarray) -> None:
        """What was executed since the last chunk was asked for, [n, A]."""
        self.policy.executed(actions)

    def reset(self) -> None:
        """A new episode begins."""
        self.policy.reset()
        self._episode, self._call = self._episode + 1, 0

    def _next_seed(self) -> int:
        words = np.random.SeedSequence([self.seed, self._episode, self._call]).generate_state(1)
        self._call += 1
        return int(words[0])


class InpaintingPolicySource(PolicySource):
    """The same, of a model that can in-paint."""

    def inpaint(self, observation: Mapping[str, Any], previous: np.ndarray, delay: int) -> np.ndarray:
        """A chunk that goes on from ``previous`` [M, A]; see `wamkit.inference.policy.Policy.inpaint`."""
        seeds = [self._next_seed()]
        return self.policy.inpaint_batch([dict(observation)], [previous], [delay], seeds=seeds)[0]


def policy_source(policy: Policy, *, seed: int = 0) -> PolicySource:
    """The source of a policy, with ``inpaint`` where its model's capabilities say that it can."""
    inpaints = policy.model.capabilities.inpaints_actions
    return (InpaintingPolicySource if inpaints else PolicySource)(policy, seed=seed)
