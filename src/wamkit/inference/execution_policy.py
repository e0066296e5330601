"""A local policy as the source of an executor's chunks.

loop = ControlLoop(policy_source(wamkit.load(path)), RealTimeChunking(hold, 8), rate_hz=80.0)

With ``keep_imagined`` the source also keeps what the model imagined while it acted, which a
`monitor_response.MonitoredLoop` compares with what came: the trunk then runs once for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wamkit.inference.monitor import Imagined, PolicyImagination, imagined_with

if TYPE_CHECKING:
    from wamkit.inference.policy import Policy
    from wamkit.types import ActionChunk


class PolicySource:
    """One robot's chunks from a policy; every call draws its own noise.

    Args:
        policy: Loaded with `wamkit.load`.
        seed: Of the noise; the same seed and observations give the same chunks.
        keep_imagined: Keep what was imagined at each call, for `newly_imagined`.

    Raises:
        MonitorError: It is to be kept, and the model imagines nothing.
    """

    def __init__(self, policy: Policy, *, seed: int = 0, keep_imagined: bool = False) -> None:
        if keep_imagined:
            PolicyImagination(policy)  # refuses a model that imagines nothing
        self.policy, self.seed = policy, seed
        self._keep = keep_imagined
        self._imagined: deque[tuple[Mapping[str, Any], Imagined]] = deque(maxlen=8)
        self._episode = self._call = 0

    def __call__(self, observation: Mapping[str, Any]) -> np.ndarray:
        """A chunk, float32 [K, A] in physical units."""
        return self._actions(observation, self.policy.act(dict(observation), seeds=[self._next_seed()]))

    def newly_imagined(self) -> list[tuple[Mapping[str, Any], Imagined]] | None:
        """The observations of the calls since the last time this was asked, each with what was imagined after it.

        None where nothing is kept. May be asked from another thread than the one that calls.
        """
        if not self._keep:
            return None
        found = []
        while self._imagined:
            found.append(self._imagined.popleft())
        return found

    def _actions(self, observation: Mapping[str, Any], chunk: ActionChunk) -> np.ndarray:
        if self._keep:
            self._imagined.append((observation, imagined_with(self.policy, chunk, [observation])[0]))
        return chunk.actions[0][chunk.valid[0]].numpy()

    @property
    def picture_interval_s(self) -> float | None:
        """Seconds between the pictures that the model must see; None: those that it acts on are enough."""
        return self.policy.model.picture_interval_s

    @property
    def look_interval_s(self) -> float | None:
        """Seconds of which a whole number must pass between two chunks; None: it may be asked any time."""
        return self.policy.model.look_interval_s

    def observed(self, observations: Sequence[Mapping[str, Any]]) -> None:
        """What was seen since the last chunk was asked for, oldest first."""
        self.policy.observed(observations)

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
        chunk = self.policy.inpaint([dict(observation)], [previous], [delay], seeds=seeds)
        return self._actions(observation, chunk)


def policy_source(policy: Policy, *, seed: int = 0, keep_imagined: bool = False) -> PolicySource:
    """The source of a policy, with ``inpaint`` where its model's capabilities say that it can; see `PolicySource`."""
    kind = InpaintingPolicySource if policy.model.capabilities.inpaints_actions else PolicySource
    return kind(policy, seed=seed, keep_imagined=keep_imagined)
