"""Know when imagination fails: what the model imagined for now, held against what it sees now.

A world action model says what it expects to see a horizon ahead. When that moment comes, the distance to what is seen,
in the model's own space and relative to how much such a prediction usually differs, is its *surprise*. A threshold on
it comes from successful episodes by conformal prediction: of episodes like these, at most the chosen share raises an
alarm. What an alarm does is decided in `monitor_response`.

    calibration = calibrate(surprises_of_successful_episodes, false_alarm_rate=0.05)
    monitor = Monitor(calibration)
    monitor.reset()
    alarm = monitor.observe(at, imagination(observation))     # each time the world is looked at

No torch is needed here: an `Imagined` is arrays, from `PolicyImagination` or from a server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wamkit.errors import WamkitError, suggest

if TYPE_CHECKING:
    from wamkit.inference.policy import Policy
    from wamkit.types import Future

Normalisation = Literal["copy_present", "horizon"]


class MonitorError(WamkitError):
    """A calibration that cannot be made, or observations out of order."""


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
class Surprise:
    """One prediction whose moment has come; distances are mean squares over the space."""

    at: float
    """Seconds since the episode's start: when it was seen."""
    horizon: float
    """Seconds between the prediction and its moment."""
    error: float
    """Imagined against seen."""
    change: float
    """What was seen when it was imagined, against what is seen now: the error of copy-the-present."""


@dataclass(frozen=True)
class Comparison:
    """A prediction whose moment has come, with what it speaks of: arrays in the model's own space."""

    surprise: Surprise
    before: np.ndarray
    """What was seen when it was imagined, [N, D] or [3, H, W]."""
    expected: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class Scale:
    """What counts as usual, fitted on episodes in which all went well.

    ``copy_present``: value = error / (change + floor), the floor being the median change: 1 and more says that the
    model knew no more than that nothing happens, and where nothing moves a small error stays small. ``horizon``:
    value = error / (mean error of that horizon).
    """

    normalisation: Normalisation
    usual: Mapping[str, float]
    """Horizon in milliseconds, as text -> the floor, or the mean error."""

    def value(self, surprise: Surprise) -> float:
        """The normalised surprise.

        Raises:
            MonitorError: it was calibrated on other horizons.
        """
        key = _key(surprise.horizon)
        if key not in self.usual:
            raise MonitorError(
                f"The monitor was calibrated for horizons of {', '.join(self.usual)} ms and sees one of {key} ms: "
                "calibrate it with this model, at this rate."
            )
        usual = self.usual[key]
        if self.normalisation == "horizon":
            return surprise.error / usual
        return surprise.error / (surprise.change + usual)


def _key(horizon: float) -> str:
    return str(round(1000 * horizon))


def fit_scale(episodes: Sequence[Sequence[Surprise]], normalisation: Normalisation = "copy_present") -> Scale:
    """What is usual in these episodes.

    Raises:
        MonitorError: there is nothing to fit on, or nothing ever moved.
    """
    if normalisation not in ("copy_present", "horizon"):
        raise MonitorError(
            f"There is no normalisation {normalisation!r}.{suggest(normalisation, ('copy_present', 'horizon'))}"
        )
    by_horizon: dict[str, list[Surprise]] = {}
    for surprise in (each for episode in episodes for each in episode):
        by_horizon.setdefault(_key(surprise.horizon), []).append(surprise)
    if not by_horizon:
        raise MonitorError(
            "No prediction came true in these episodes: look at the world at times that the model predicts "
            "(a horizon after an earlier look), and let episodes last longer than a horizon."
        )
    usual = {
        key: float(
            np.mean([s.error for s in found]) if normalisation == "horizon" else np.median([s.change for s in found])
        )
        for key, found in by_horizon.items()
    }
    if min(usual.values()) <= 0.0:
        raise MonitorError("Nothing ever changed in these episodes: calibrate on episodes in which the robot acts.")
    return Scale(normalisation, usual)


def conformal_threshold(scores: Sequence[float], false_alarm_rate: float) -> float:
    """The threshold that a further score exceeds with at most the given probability, whatever its distribution.

    The ceil((n + 1)(1 - alpha))-th smallest of n exchangeable scores (split conformal prediction; Vovk et al. 2005).

    Args:
        scores: One for each calibration episode: the greatest surprise in it.
        false_alarm_rate: alpha, for a whole episode.

    Raises:
        MonitorError: alpha is not in (0, 1), or the episodes are too few to promise it.
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise MonitorError(f"A false-alarm rate lies between 0 and 1, not at {false_alarm_rate}.")
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(values).all():
        raise MonitorError("A calibration score is not finite: find the episode that it came from.")
    # The product is rounded where it is a whole number but for floating point: 20 * 0.95 is 19, not 20.
    rank = math.ceil(round((len(values) + 1) * (1.0 - false_alarm_rate), 9))
    if rank > len(values):
        needed = math.ceil(round(1.0 / false_alarm_rate, 9)) - 1
        raise MonitorError(
            f"{len(values)} calibration episodes cannot promise a false-alarm rate of {false_alarm_rate:g}: "
            f"it takes {needed} or more; record more successful episodes or allow more false alarms."
        )
    return float(values[rank - 1])


@dataclass(frozen=True)
class Calibration:
    """Scale and threshold, and what they rest on; saved beside a checkpoint."""

    scale: Scale
    threshold: float
    false_alarm_rate: float
    memory: int
    """Surprises whose mean is compared with the threshold."""
    episodes: int
    """That the threshold rests on; those of the scale are others."""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            MonitorError: the file is missing or is no calibration.
        """
        try:
            values = json.loads(Path(path).read_text())
            return cls(**values | {"scale": Scale(**values["scale"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MonitorError(
                f"{path} is no calibration of a monitor ({error}): make one with calibrate()."
            ) from error


def scores(episode: Sequence[Surprise], scale: Scale, memory: int = 1) -> np.ndarray:
    """The normalised surprise at each moment, averaged over the last ``memory`` ones: float64 [n]."""
    values = np.array([scale.value(surprise) for surprise in episode])
    return np.array([values[max(0, i + 1 - memory) : i + 1].mean() for i in range(len(values))])


def calibrate(
    episodes: Sequence[Sequence[Surprise]],
    false_alarm_rate: float = 0.05,
    *,
    normalisation: Normalisation = "copy_present",
    memory: int = 1,
    scale_episodes: int | None = None,
) -> Calibration:
    """A threshold from successful episodes.

    The scale is fitted on the first episodes and the threshold on the others: a score that had looked at its own
    calibration set would break the promise.

    Args:
        episodes: The surprises of each episode, as `Monitor.history` holds them; like those to come (same tasks,
            policy, rate, time limit), and in an order that says nothing about them.
        false_alarm_rate: Share of such episodes that may raise an alarm.
        normalisation: See `Scale`.
        memory: Surprises that are averaged; more of them are calmer and later.
        scale_episodes: For the scale; None: a quarter.

    Raises:
        MonitorError: too few episodes, or nothing to measure in them.
    """
    if memory < 1:
        raise MonitorError(f"A monitor averages at least one surprise, not {memory}.")
    count = len(episodes) // 4 if scale_episodes is None else scale_episodes
    scale = fit_scale(episodes[:count], normalisation)
    rest = [episode for episode in episodes[count:] if len(episode)]
    threshold = conformal_threshold([float(scores(e, scale, memory).max()) for e in rest], false_alarm_rate)
    return Calibration(scale, threshold, false_alarm_rate, memory, len(rest))


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
