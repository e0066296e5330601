"""What an environment is to wamkit: trials that repeat exactly, steps that need not render, LeRobot's keys.

Everything above this file (recording, evaluation, ``wam check``) speaks only to :class:`Environment`. An adapter for
a simulator implements the six methods below the line; the gymnasium interface on top is written once, here.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np

from wamkit.errors import WamkitError

Split = Literal["train", "eval"]
"""Demonstrations are recorded on ``train`` trials, policies are tried on ``eval`` ones: no initial state is shared."""


class EnvError(WamkitError):
    """An environment was asked for something that it does not have, or was given something that it cannot use."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What an environment gives and takes: the simulator's side of the contract that ``wam check`` compares."""

    name: str
    """The simulator, such as ``metaworld``; also the value of ``--env.type``."""
    task: str
    instruction: str
    cameras: Mapping[str, tuple[int, int]]
    """Camera name -> (height, width) of the uint8 image under ``observation.images.<camera>``."""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    rate_hz: float
    """Control rate: one action each 1 / rate_hz seconds of simulated time."""
    max_steps: int
    embodiment: str
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what computes the physics and the pictures; part of any result measured here."""
    notes: tuple[str, ...] = ()
    """What must be said wherever a number measured here is shown, such as that meshes are stand-ins."""


def trial_seed(*names: str | int) -> int:
    """A 64-bit seed that depends on the names alone, in every process, run and version of Python.

    Args:
        names: What the seed is for, such as ``("metaworld", "reach-v3", "eval", 7)``.
    """
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Environment(gymnasium.Env, abc.ABC):
    """One task of one simulator.

    A trial is a number: the initial state is a function of (simulator, task, split, trial) and of nothing else, so
    neither the number of workers nor what ran before can change it.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    @property
    @abc.abstractmethod
    def description(self) -> EnvSpec:
        """What this environment gives and takes."""

    @abc.abstractmethod
    def reset_trial(self, trial: int, *, split: Split = "eval", render: bool = True) -> dict[str, Any]:
        """Put the simulator into the initial state of a trial.

        Args:
            trial: 0, 1, 2, ...
            split: ``train`` and ``eval`` trials are different states even where the number is the same.
            render: Whether the returned observation holds images.

        Returns:
            The observation, see :meth:`observe`.
        """

    @abc.abstractmethod
    def step_action(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, Any] | None, bool, bool]:
        """Execute one action.

        Args:
            action: float [A] in the units of ``description``; clipped to its bounds.
            render: Whether an observation, which costs a rendering, is wanted.

        Returns:
            The observation (None unless ``render``), whether the task is solved in this state, and whether the time
            limit is reached.
        """

    @abc.abstractmethod
    def observe(self, *, images: bool = True) -> dict[str, Any]:
        """The present under LeRobot's keys.

        Args:
            images: False leaves the images out, and rendering with them.

        Returns:
            ``observation.images.<camera>`` uint8 [H, W, 3] upright, ``observation.state`` float32 [S], ``task`` str.
        """

    @abc.abstractmethod
    def expert_action(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """What the simulator's own expert does now: float32 [A] within the bounds. It may look at everything."""

    @abc.abstractmethod
    def render_frame(self, camera: str | None = None, resolution: int | tuple[int, int] | None = None) -> np.ndarray:
        """One picture, uint8 [H, W, 3], upright, really rendered at ``resolution`` (default: the description's)."""

    def privileged_state(self) -> dict[str, np.ndarray]:
        """What only a simulator knows (object poses, the goal): for probes and experts, never for a policy."""
        return {}

    # ---- gymnasium, on top -----------------------------------------------------------------------------------------

    _next_trial = 0

    @property
    def observation_space(self) -> gymnasium.Space:  # type: ignore[override]
        """Images, state and instruction under LeRobot's keys."""
        spec = self.description
        spaces: dict[str, gymnasium.Space] = {
            f"observation.images.{camera}": gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
            for camera, size in spec.cameras.items()
        }
        shape = (len(spec.state_names),)
        spaces["observation.state"] = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        spaces["task"] = gymnasium.spaces.Text(min_length=0, max_length=1000, charset=_PRINTABLE)
        return gymnasium.spaces.Dict(spaces)

    @property
    def action_space(self) -> gymnasium.Space:  # type: ignore[override]
        """The bounds of the description."""
        spec = self.description
        low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Gymnasium's reset: ``options={"trial": n, "split": ...}``, else ``seed`` as the trial, else the next one."""
        super().reset(seed=seed)
        options = dict(options or {})
        trial = int(options.pop("trial", seed if seed is not None else self._next_trial))
        split: Split = options.pop("split", "eval")
        if options:
            raise EnvError(f"reset does not know the option {next(iter(options))!r}; it takes trial and split.")
        self._next_trial = trial + 1
        return self.reset_trial(trial, split=split), {"trial": trial, "split": split, "is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Gymnasium's step: reward 1 at success, which also terminates."""
        observation, success, truncated = self.step_action(np.asarray(action), render=True)
        assert observation is not None
        return observation, float(success), success, truncated, {"is_success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The first camera's picture."""
        return self.render_frame()


_PRINTABLE = frozenset(chr(code) for code in range(32, 127))


def checked_action(action: np.ndarray, spec: EnvSpec) -> np.ndarray:
    """The action as float32 [A], clipped to the bounds.

    Raises:
        EnvError: It has another shape, or holds NaN or infinity.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (len(spec.action_names),):
        raise EnvError(
            f"{spec.name} takes one action of {len(spec.action_names)} numbers ({', '.join(spec.action_names)}), "
            f"but got the shape {action.shape}."
        )
    if not np.isfinite(action).all():
        raise EnvError(f"The action {action.tolist()} is not finite: look at the policy's last layer and statistics.")
    return np.clip(action, np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32))
