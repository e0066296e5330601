"""One demonstration: the expert acts in a trial, with or without noise, until shortly after success."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wamkit.envs.base import EnvError, Environment, EnvSpec, trial_seed


@dataclass(frozen=True, kw_only=True)
class DemonstrationSettings:
    """How demonstrations are made; the same for all episodes of a recording."""

    action_noise: float = 0.0
    """Standard deviation, in action units, of noise that disturbs the expert's motion (not its gripper). The action
    that is recorded is the expert's own, clean one for the disturbed state (DART, arXiv 1703.09327): the policy sees
    how to come back. What was executed is kept beside it as ``action_executed``."""
    noise_time_s: float = 0.1
    """Correlation time of the noise. White noise at 80 Hz would average out before the arm has moved."""
    hold_steps: int = 10
    """Steps recorded from the first success on; the expert goes on acting."""
    video_rate_hz: float | None = None
    """Rate at which pictures are new; rows between repeat the last one. None: each row has its own picture."""
    seed: int = 0
    """Namespace of the noise."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """The rows of one episode. ``images`` holds only new pictures: row t shows number ``t // picture_stride``."""

    task: str
    trial: int
    success: bool
    instruction: str
    picture_stride: int
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Camera -> uint8 [N, H, W, 3]; empty where the expert failed."""
    states: np.ndarray
    """float32 [T, S], before the action."""
    actions: np.ndarray
    """float32 [T, A]: the expert's."""
    executed: np.ndarray
    """float32 [T, A]: what the simulator was given."""

    @property
    def length(self) -> int:
        """Rows."""
        return len(self.actions)


class ActionNoise:
    """Correlated Gaussian noise on the motion dimensions: x' = a x + sqrt(1 - a^2) sigma n, a = exp(-1/(rate tau)).

    Args:
        settings: ``action_noise`` and ``noise_time_s``.
        spec: Dimensions whose name speaks of the gripper get none.
        rng: Where the noise comes from.
    """

    def __init__(self, settings: DemonstrationSettings, spec: EnvSpec, rng: np.random.Generator) -> None:
        self._keep = math.exp(-1.0 / (spec.rate_hz * settings.noise_time_s)) if settings.noise_time_s > 0 else 0.0
        self._scale = settings.action_noise * np.array(["gripper" not in name for name in spec.action_names], float)
        self._rng = rng
        self._value = self._scale * rng.standard_normal(len(self._scale))

    def next(self) -> np.ndarray:
        """The noise of the next step, float64 [A]."""
        value = self._value
        fresh = self._scale * self._rng.standard_normal(len(self._scale))
        self._value = self._keep * value + math.sqrt(1.0 - self._keep**2) * fresh
        return value


def picture_stride(spec: EnvSpec, video_rate_hz: float | None) -> int:
    """Rows for each new picture.

    Raises:
        EnvError: The video rate does not divide the control rate.
    """
    if video_rate_hz is None:
        return 1
    stride = round(spec.rate_hz / video_rate_hz) if video_rate_hz > 0 else 0
    if stride < 1 or abs(stride * video_rate_hz - spec.rate_hz) > 1e-6:
        raise EnvError(
            f"The video rate {video_rate_hz:g} Hz does not divide the control rate {spec.rate_hz:g} Hz: "
            f"take {spec.rate_hz:g} divided by a whole number."
        )
    return stride


def demonstrate(env: Environment, trial: int, settings: DemonstrationSettings) -> Demonstration:
    """Let the expert act in one train trial.

    Args:
        env: Where; its time limit ends a failure.
        trial: Which initial state of the split ``train``.
        settings: Noise, length, pictures.

    Returns:
        All rows, the first at the initial state; without pictures where the expert failed.
    """
    spec = env.description
    stride = picture_stride(spec, settings.video_rate_hz)
    rng = np.random.default_rng(trial_seed("demonstration", spec.name, spec.task, settings.seed, trial))
    noise = ActionNoise(settings, spec, rng)
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in spec.cameras}
    states, actions, executed = [], [], []
    observation: dict[str, Any] | None = env.reset_trial(trial, split="train")
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    first_success, truncated = None, False
    while not truncated and (first_success is None or len(actions) < first_success + settings.hold_steps):
        if observation is None:
            observation = env.observe(images=False)
        else:
            for camera, pictures in images.items():
                pictures.append(observation[f"observation.images.{camera}"])
        action = env.expert_action(rng)
        disturbed = np.clip(action + noise.next(), low, high).astype(np.float32)
        states.append(observation["observation.state"])
        actions.append(action)
        executed.append(disturbed)
        render = len(actions) % stride == 0
        observation, success, truncated = env.step_action(disturbed, render=render)
        if success and first_success is None:
            first_success = len(actions)
    solved = first_success is not None
    return Demonstration(
        task=spec.task,
        trial=trial,
        success=solved,
        instruction=spec.instruction,
        picture_stride=stride,
        images={camera: np.stack(pictures) for camera, pictures in images.items()} if solved else {},
        states=np.stack(states),
        actions=np.stack(actions),
        executed=np.stack(executed),
    )
