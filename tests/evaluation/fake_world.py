"""A simulator for tests: a point on a line that must reach 1, with faults on demand. Importable by worker processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.envs.base import EnvError, Environment, EnvSpec, checked_action, trial_seed

SIZE = (6, 8)


@dataclass(frozen=True)
class FakeFactory:
    """``faults``: (task, trial, step, kind, times) with kind hang, exit, raise or refuse; counted in ``folder``.

    With ``solved_after`` a trial succeeds after so many steps whatever is done, where ``solved_every`` divides its
    number.
    """

    folder: str = ""
    faults: tuple[tuple[str, int, int, str, int], ...] = ()
    max_steps: int = 30
    solved_after: int | None = None
    solved_every: int = 1

    def __call__(self, task: str) -> FakeWorld:
        return FakeWorld(task, self)


class FakeWorld(Environment):
    def __init__(self, task: str, factory: FakeFactory) -> None:
        if not task.startswith("line"):
            raise EnvError(f"no task {task!r}")
        self._factory = factory
        self._spec = EnvSpec(
            name="fake",
            task=task,
            instruction=f"go along {task}",
            cameras={"front": SIZE, "side": SIZE},
            state_names=("x", "noise"),
            action_names=("dx",),
            action_low=(-0.1,),
            action_high=(0.1,),
            rate_hz=10.0,
            max_steps=factory.max_steps,
            embodiment="metaworld",
        )
        self.x, self.steps, self.trial = 0.0, 0, 0

    @property
    def description(self) -> EnvSpec:
        return self._spec

    def reset_trial(self, trial, *, split="eval", render=True):
        rng = np.random.default_rng(trial_seed(self._spec.task, split, trial))
        self.x, self.steps, self.trial = float(rng.uniform(-0.5, 0.3)), 0, trial
        return self.observe(images=render)

    def step_action(self, action, render=True):
        self._fault()
        self.x += float(checked_action(action, self._spec)[0])
        self.steps += 1
        solved = self.x >= 1.0
        if self._factory.solved_after is not None:
            solved = self.steps >= self._factory.solved_after and self.trial % self._factory.solved_every == 0
        return (self.observe() if render else None), solved, self.steps >= self._spec.max_steps

    def observe(self, *, images: bool = True) -> dict[str, Any]:
        observation: dict[str, Any] = {}
        if images:
            for camera in self._spec.cameras:
                observation[f"observation.images.{camera}"] = self.render_frame(camera)
        observation["observation.state"] = np.array([self.x, self.steps % 3], np.float32)
        observation["task"] = self._spec.instruction
        return observation

    def expert_action(self, rng=None):
        return np.array([0.1], np.float32)

    def render_frame(self, camera=None, resolution=None):
        size = SIZE if resolution is None else (resolution, resolution)
        level = int(np.clip((self.x + 1) * 100, 0, 255))
        return np.full((*size, 3), level if camera != "side" else 255 - level, np.uint8)

    def _fault(self) -> None:
        for task, trial, step, kind, times in self._factory.faults:
            if (task, trial, step) != (self._spec.task, self.trial, self.steps):
                continue
            done = Path(self._factory.folder) / f"{task}_{trial}_{kind}"
            count = int(done.read_text()) if done.exists() else 0
            if count >= times:
                continue
            done.write_text(str(count + 1))
            if kind == "hang":
                time.sleep(3600)
            if kind == "exit":
                os._exit(7)
            if kind == "raise":
                raise RuntimeError("the physics exploded")
            raise EnvError("this action is not for me")
