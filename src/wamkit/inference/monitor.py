"""Know when imagination fails: what the model imagined for now, held against what it sees now.

A world action model says what it expects to see a horizon ahead. When that moment comes, the distance to what is seen,
in the model's own space and relative to how much such a prediction usually differs, is its *surprise*. A threshold on
it comes from successful episodes by conformal prediction: of episodes like these, at most the chosen share raises an
alarm. What an alarm does is decided in `monitor_response`.

    monitor = Monitor(Calibration.load("calibration.json"))      # of `wam calibrate`; see `monitor_calibration`
    monitor.reset()
    alarm = monitor.observe(at, imagination(observation))     # each time the world is looked at

No torch is needed here: an `Imagined` is arrays, from `PolicyImagination` or from a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wamkit.inference.monitor_calibration import Calibration, MonitorError, Surprise

if TYPE_CHECKING:
    from wamkit.inference.policy import Policy
    from wamkit.types import ActionChunk, Future


@dataclass(frozen=True)
class Imagined:
    """What the model makes of one observation: the present in its own space, and what it expects."""

    present: np.ndarray
    """[N, D] tokens or [3, H, W] pixels."""
    values: np.ndarray
    """[T, N, D] or [T, 3, H, W]."""
    times: np.ndarray
    """[T], seconds from the observation."""


@dataclass(frozen=True)
class Comparison:
    """A prediction whose moment has come, with what it speaks of: arrays in the model's own space."""

    surprise: Surprise
    before: np.ndarray
    """What was seen when it was imagined, [N, D] or [3, H, W]."""
    expected: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class Alarm:
    """The surprise exceeds the threshold."""

    at: float
    """Seconds since the episode's start."""
    score: float
    threshold: float


class Monitor:
    """Keeps what was imagined until its moment comes.

    Args:
        calibration: None: it measures and never raises an alarm, as for calibration.
        tolerance_s: How far from its moment a prediction may be compared; below half the time between two looks.
    """

    def __init__(self, calibration: Calibration | None = None, *, tolerance_s: float = 0.02) -> None:
        self.calibration, self.tolerance_s = calibration, tolerance_s
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        self.history: list[Surprise] = []
        """All surprises of the episode."""
        self.score: float | None = None
        """The newest normalised surprise; None before the first."""
        self.latest: Comparison | None = None
        """The newest comparison; of several at once, that of the longest horizon."""
        self.unmatched = 0
        """Predictions whose moment passed without a look."""
        self._recent: list[float] = []
        self._pending: list[tuple[float, float, np.ndarray, np.ndarray]] = []
        self._at = -math.inf

    def observe(self, at: float, imagined: Imagined) -> Alarm | None:
        """One look at the world.

        Args:
            at: Seconds since the episode's start.
            imagined: What the model makes of it.

        Returns:
            An alarm where the surprise exceeds the threshold.

        Raises:
            MonitorError: looks are not in order of time, or horizons are not those of the calibration.
        """
        if at <= self._at:
            raise MonitorError(f"A look at {at:.3f} s after one at {self._at:.3f} s: call reset between episodes.")
        self._at = at
        now, waiting = [], []
        for due, horizon, before, expected in self._pending:
            if abs(due - at) <= self.tolerance_s:
                seen = imagined.present
                surprise = Surprise(at, horizon, _distance(expected, seen), _distance(before, seen))
                now.append(Comparison(surprise, before, expected, seen))
            elif due > at:
                waiting.append((due, horizon, before, expected))
            else:
                self.unmatched += 1
        for time, value in zip(imagined.times, imagined.values, strict=True):
            waiting.append((at + float(time), float(time), imagined.present, value))
        self._pending = waiting
        self.history += [comparison.surprise for comparison in now]
        if now:
            self.latest = max(now, key=lambda comparison: comparison.surprise.horizon)
        if self.calibration is None or not now:
            return None
        scale, threshold, memory = self.calibration.scale, self.calibration.threshold, self.calibration.memory
        self._recent = [*self._recent, *(scale.value(comparison.surprise) for comparison in now)][-memory:]
        self.score = float(np.mean(self._recent))
        return Alarm(at, self.score, threshold) if self.score > threshold else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean(np.square(one.astype(np.float32) - other.astype(np.float32))))


def patch_distance(one: np.ndarray, other: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray | None:
    """Where two moments differ: mean squares of each patch or pixel, [rows, columns].

    Args:
        one: [N, D] tokens or [3, H, W] pixels.
        other: The same.
        grid: Rows and columns of the N tokens; None: they have no place, so neither has their distance.
    """
    gap = np.square(one.astype(np.float32) - other.astype(np.float32))
    if gap.ndim == 3:
        return gap.mean(axis=0)
    return None if grid is None else gap.mean(axis=-1).reshape(grid)


def imagined_of(future: Future) -> list[Imagined]:
    """A model's future as arrays, an entry for each sample of the batch."""
    present, values, times = (
        tensor.detach().float().cpu().numpy() for tensor in (future.present, future.values, future.times)
    )
    return [Imagined(*sample) for sample in zip(present, values, times, strict=True)]


def imagined_with(
    policy: Policy, chunk: ActionChunk, observations: Sequence[Mapping[str, Any]], *, embodiment: str | None = None
) -> list[Imagined]:
    """What a policy imagined where it acted, an entry for each sample: with the chunk, else by a pass of its own.

    Args:
        policy: That gave the chunk.
        chunk: Plainly or through a runtime.
        observations: What it acted on.
        embodiment: As it was told to act.
    """
    future, given = chunk.imagined, [dict(each) for each in observations]
    if future is None:
        future = policy.imagine(given, embodiment=embodiment)
    elif future.space not in policy.model.capabilities.imagines:
        future = policy.decoded(future, given, embodiment=embodiment)
    return imagined_of(future)


class PolicyImagination:
    """A local policy's imagination, for `monitor_response.MonitoredLoop`.

    Raises:
        MonitorError: its model imagines nothing.
    """

    def __init__(self, policy: Policy) -> None:
        if not policy.model.capabilities.imagines:
            raise MonitorError(f"{policy.model.name} imagines nothing, so it cannot be surprised.")
        self.policy = policy

    def __call__(self, observation: Mapping[str, Any]) -> Imagined:
        """What the policy expects after this observation."""
        return imagined_of(self.policy.imagine(dict(observation)))[0]
