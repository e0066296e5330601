"""What is compared in closed loop: the policy, and controls that say what its success is worth.

An arm either carries a policy, which runs batched in the main process, or acts by itself inside the worker
(:class:`ActorArm`). All arms meet the same trials, and those with a policy the same seeds for its noise.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from wamkit.envs.base import Environment, EnvSpec
from wamkit.errors import WamkitError

MID_GREY = 128
"""What a blind policy sees: the middle of uint8, near zero after a model's own normalisation."""


class EvaluationError(WamkitError):
    """An evaluation was asked for something that cannot be, or could not go on."""


class BatchedPolicy(Protocol):
    """What an evaluation needs of a policy; :class:`wamkit.inference.policy.Policy` is one."""

    def act_batch(self, observations: list[dict[str, Any]], *, seeds: Sequence[int]) -> np.ndarray:
        """Chunks in physical units, [B, K, A].

        Args:
            observations: LeRobot's keys, one dictionary for each sample.
            seeds: One for each sample. Whatever the policy samples for a sample must depend on its seed alone, so
                that neither the batch's size nor its other members change it.
        """
        ...

    def reset(self) -> None:
        """Forget all that was seen."""
        ...


class Arm(abc.ABC):
    """One row of the comparison."""

    name: str


class ActorArm(Arm):
    """An arm that acts inside the worker, without pictures. Sent there by pickle."""

    @abc.abstractmethod
    def act(self, env: Environment, rng: np.random.Generator) -> np.ndarray:
        """One action, float32 [A]; ``rng`` depends on (seed, task, trial) alone."""


@dataclass(frozen=True)
class NoOpArm(ActorArm):
    """Zeros: how often a trial solves itself."""

    name: str = "no_op"

    def act(self, env: Environment, rng: np.random.Generator) -> np.ndarray:
        """Zeros, where the bounds allow it."""
        spec = env.description
        return np.clip(np.zeros(len(spec.action_names), np.float32), spec.action_low, spec.action_high)


@dataclass(frozen=True)
class RandomArm(ActorArm):
    """Uniform within the bounds, drawn anew at each step."""

    name: str = "random"

    def act(self, env: Environment, rng: np.random.Generator) -> np.ndarray:
        """Uniform noise."""
        return rng.uniform(env.description.action_low, env.description.action_high).astype(np.float32)


@dataclass(frozen=True)
class ExpertArm(ActorArm):
    """The simulator's own expert, which sees everything: the ceiling."""

    name: str = "expert"

    def act(self, env: Environment, rng: np.random.Generator) -> np.ndarray:
        """What the expert does now."""
        return env.expert_action(rng)


class PolicyArm(Arm):
    """A policy in closed loop.

    Args:
        policy: Anything with ``act_batch`` and ``reset``.
        name: Of the arm in the report.
        n_action_steps: Actions executed of each chunk; None for the evaluation's setting.
        identity: What tells this policy from another (a checkpoint's hash): a resumed evaluation must have the same.
    """

    needs_images = True

    def __init__(
        self, policy: BatchedPolicy, name: str = "policy", *, n_action_steps: int | None = None, identity: str = ""
    ) -> None:
        self.policy, self.name, self.n_action_steps, self.identity = policy, name, n_action_steps, identity

    def prepare(self, observation: dict[str, Any], task: str, trial: int, spec: EnvSpec) -> dict[str, Any]:
        """What the policy is shown instead of ``observation``."""
        return observation

    def acted(self, task: str, trial: int, at: float, sample: int) -> None:
        """The policy has acted for this episode.

        Args:
            task: Of the episode.
            trial: Of the episode.
            at: Seconds since the episode's start: when it saw what it acts on; 0 where it begins, or begins again
                because its simulator broke.
            sample: Place of the episode in the policy's last batch.
        """

    def notes(self, task: str, trial: int) -> dict[str, Any]:
        """What an episode's record says besides."""
        return {}


class BlindArm(PolicyArm):
    """The same policy, its images replaced by mid-grey: what it can do without sight. Needs no rendering."""

    needs_images = False

    def __init__(self, policy: BatchedPolicy, name: str = "blind", **options: Any) -> None:
        super().__init__(policy, name, **options)

    def prepare(self, observation: dict[str, Any], task: str, trial: int, spec: EnvSpec) -> dict[str, Any]:
        """The observation with grey images."""
        grey = {
            f"observation.images.{camera}": np.full((*size, 3), MID_GREY, np.uint8)
            for camera, size in spec.cameras.items()
        }
        return {**observation, **grey}


class SwappedInstructionArm(PolicyArm):
    """The same policy, told another task's instruction: whether it listens.

    Trial t of task i is told task i + 1 + (t mod (n - 1)), cyclically: every other task gets its turn.

    Args:
        policy: The policy.
        instructions: Task -> instruction, of at least two tasks.
        name: Of the arm in the report.
        **options: See :class:`PolicyArm`.
    """

    def __init__(
        self, policy: BatchedPolicy, instructions: dict[str, str], name: str = "swapped_instruction", **options: Any
    ) -> None:
        super().__init__(policy, name, **options)
        if len(set(instructions.values())) < 2:
            raise EvaluationError(
                "Instructions can be swapped between two tasks or more: evaluate several, or drop the arm."
            )
        self.instructions = dict(instructions)

    def told(self, task: str, trial: int) -> str:
        """The task whose instruction the policy is given."""
        names = list(self.instructions)
        if task not in self.instructions:
            raise EvaluationError(f"The arm {self.name} has no instruction for {task}: give it all evaluated tasks.")
        return names[(names.index(task) + 1 + trial % (len(names) - 1)) % len(names)]

    def prepare(self, observation: dict[str, Any], task: str, trial: int, spec: EnvSpec) -> dict[str, Any]:
        """The observation with another instruction."""
        return {**observation, "task": self.instructions[self.told(task, trial)]}

    def notes(self, task: str, trial: int) -> dict[str, Any]:
        """Which task the policy was told to do."""
        told = self.told(task, trial)
        return {"told_task": told, "told_instruction": self.instructions[told]}
