"""Faults that strike a MetaWorld episode under way: of the camera, the scene, the actuators, the instruction."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from wamkit.envs.metaworld import MetaWorldEnvironment
from wamkit.envs.metaworld_tasks import INSTRUCTIONS


class Fault:
    """No fault; each kind below changes one of its methods. One object serves one episode.

    Args:
        env: Of the episode.
        rng: Depends on (fault, task, trial) alone.
        tasks: All tasks of the run.
    """

    def __init__(self, env: MetaWorldEnvironment, rng: np.random.Generator, tasks: tuple[str, ...]) -> None:
        self.env, self.rng, self.tasks = env, rng, tasks

    def strike(self) -> None:
        """Called once, at the onset."""

    def seen(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What the policy sees instead, from the onset on."""
        return observation

    def done(self, action: np.ndarray) -> np.ndarray:
        """What the arm does instead of ``action``, from the onset on."""
        return action


class OccludedCamera(Fault):
    """A dark rectangle covers a quarter of the picture, around its middle."""

    def seen(self, observation: dict[str, Any]) -> dict[str, Any]:
        changed = dict(observation)
        for name, value in observation.items():
            if name.startswith("observation.images."):
                picture = value.copy()
                height, width = picture.shape[:2]
                picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 30
                changed[name] = picture
        return changed


class MovedObject(Fault):
    """What the task is about jumps 10 cm to one side, its goal with it."""

    def strike(self) -> None:
        self.env.displace_fixture(np.array([0.1 * self.rng.choice([-1.0, 1.0]), 0.0, 0.0]))


class _Actuators(Fault):
    def hold(self, action: np.ndarray) -> np.ndarray:
        """The arm stays; the gripper does as told."""
        moves = np.array(["gripper" not in name for name in self.env.description.action_names])
        return np.where(moves, 0.0, action).astype(np.float32)


class DroppedActions(_Actuators):
    """Each action is lost with a probability of 0.8."""

    def done(self, action: np.ndarray) -> np.ndarray:
        return self.hold(action) if self.rng.random() < 0.8 else action


class DelayedActions(_Actuators):
    """Each action takes effect 16 control periods (0.2 s) late."""

    def strike(self) -> None:
        self.queue: deque[np.ndarray] = deque()

    def done(self, action: np.ndarray) -> np.ndarray:
        self.queue.append(action)
        return self.queue.popleft() if len(self.queue) > 16 else self.hold(action)


class WrongInstruction(Fault):
    """The policy is told another task of the run."""

    def strike(self) -> None:
        others = [task for task in self.tasks if task != self.env.description.task] or [
            task for task in INSTRUCTIONS if task != self.env.description.task
        ]
        self.told = INSTRUCTIONS[str(self.rng.choice(others))]

    def seen(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "task": self.told}


class ChangedLighting(Fault):
    """All lamps fall to 40 %."""

    def strike(self) -> None:
        self.env.set_light(0.4)


FAULTS: dict[str, type[Fault]] = {
    "clean": Fault,
    "occluded_camera": OccludedCamera,
    "moved_object": MovedObject,
    "dropped_actions": DroppedActions,
    "delayed_actions": DelayedActions,
    "wrong_instruction": WrongInstruction,
    "changed_lighting": ChangedLighting,
}
