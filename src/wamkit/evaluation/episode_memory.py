"""What an evaluation keeps for a policy with a memory: a row for each episode, told what was seen and executed.

Batches gather whichever episodes wait for a chunk, so rows meet in ever new company: each is recalled, told and put
back by itself before the batch acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamkit.evaluation.arms import Arm, PolicyArm


@dataclass
class EpisodeMemory:
    """One episode's; both are None before its first chunk, and for policies without a memory."""

    row: Any = None
    """Of `wamkit.inference.policy.Policy.remember`."""
    executed: np.ndarray | None = None
    """Since the last chunk was asked for, [n, A] in physical units."""

    def brought_up(self, policy: Any, seen: Sequence[Any]) -> Any:
        """The row up to now; None where the episode begins.

        Args:
            policy: A policy with a memory.
            seen: The observations on the way here, oldest first.
        """
        if self.row is None:
            return None
        policy.recall((self.row,))
        if seen:
            policy.observed(seen)
        policy.executed(self.executed)
        (row,) = policy.remember()
        return row


def act_with_memory(
    policy: Any, memories: Sequence[EpisodeMemory], seen: Sequence[Sequence[Any]], act: Callable[[], np.ndarray]
) -> np.ndarray:
    """``act`` for episodes that go on from what the policy remembers of each; plainly, for one without a memory."""
    if not getattr(policy, "remembers", False):
        return act()
    policy.recall(tuple(memory.brought_up(policy, own) for memory, own in zip(memories, seen, strict=True)))
    chunks = act()
    for memory, row in zip(memories, policy.remember(), strict=True):
        memory.row = row
    return chunks


def look_every(arm: Arm, rate_hz: float) -> int | None:
    """Actions between two pictures that the arm's policy must see; None where those that it acts on are enough."""
    interval_s = getattr(arm.policy, "picture_interval_s", None) if isinstance(arm, PolicyArm) else None
    return None if interval_s is None else max(1, round(interval_s * rate_hz))
