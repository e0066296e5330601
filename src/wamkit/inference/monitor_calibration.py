"""What a monitor's alarms rest on: the surprise of a prediction, what is usual for it, and a threshold that promises.

A *surprise* is the distance between what a model imagined for a moment and what it sees then (`monitor`). A *scale*
says how much of it is usual, and split conformal prediction turns the surprises of successful episodes into a
threshold: of episodes like these, at most the chosen share raises an alarm. ``wam calibrate`` makes both for a
checkpoint.

    calibration = calibrate(surprises_of_successful_episodes, false_alarm_rate=0.05)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wamkit.errors import WamkitError, suggest
from wamkit.json_files import read_json, write_json

Normalisation = Literal["copy_present", "horizon"]


class MonitorError(WamkitError):
    """A calibration that cannot be made, or observations out of order."""


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
    needed = least_for_threshold(false_alarm_rate)
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(values).all():
        raise MonitorError("A calibration score is not finite: find the episode that it came from.")
    # The product is rounded where it is a whole number but for floating point: 20 * 0.95 is 19, not 20.
    rank = math.ceil(round((len(values) + 1) * (1.0 - false_alarm_rate), 9))
    if rank > len(values):
        raise MonitorError(
            f"{len(values)} calibration episodes cannot promise a false-alarm rate of {false_alarm_rate:g}: "
            f"it takes {needed} or more; record more successful episodes or allow more false alarms."
        )
    return float(values[rank - 1])


def _short(checkpoint: str) -> str:
    """A digest's beginning, and all of what follows it."""
    digest, *settings = checkpoint.split(" ", 1)
    return " ".join([digest[:12], *settings])


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
    checkpoint: str | None = None
    """Digest of the checkpoint that acted and imagined (``sha256`` of `evaluation.provenance.checkpoint_record`), with
    its inference settings where they were not its own (`inference.settings.identity`); None where nobody said."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for people: environment, tasks, trials, successes, command, date."""

    def refuse_other(self, checkpoint: str) -> None:
        """Raise unless it was made with this checkpoint: another one's surprises are others.

        Args:
            checkpoint: Its digest.

        Raises:
            MonitorError: It was made with another one, or does not say with which.
        """
        if self.checkpoint is None:
            raise MonitorError(
                "The monitor's calibration does not say which checkpoint it is of: make one with `wam calibrate`, or"
                " set Calibration.checkpoint to its digest."
            )
        if self.checkpoint != checkpoint:
            raise MonitorError(
                f"The monitor's calibration is of checkpoint {_short(self.checkpoint)} and this one is"
                f" {_short(checkpoint)}: calibrate the monitor of this one with `wam calibrate`."
            )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            MonitorError: the file is missing or is no calibration.
        """
        mend = "make one with `wam calibrate`."
        values = read_json(Path(path), MonitorError, mend)
        try:
            values["scale"] = Scale(**values["scale"])
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise MonitorError(f"{path} is no calibration of a monitor ({error}): {mend}") from error


SCALE_SHARE = 4
"""One in so many calibration episodes gives the scale; the threshold rests on the others."""


def least_for_threshold(false_alarm_rate: float) -> int:
    """The fewest episodes from which `conformal_threshold` can promise a rate: ceil(1 / alpha) - 1.

    Raises:
        MonitorError: alpha is not in (0, 1).
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise MonitorError(f"A false-alarm rate lies between 0 and 1, not at {false_alarm_rate}.")
    return math.ceil(round(1.0 / false_alarm_rate, 9)) - 1


def least_for_calibration(false_alarm_rate: float) -> int:
    """The fewest successful episodes that `calibrate` takes: those of the threshold, a quarter more for the scale.

    Raises:
        MonitorError: alpha is not in (0, 1).
    """
    threshold = least_for_threshold(false_alarm_rate)
    # At least one for the scale; beyond that the smallest n with n - n // 4 >= threshold.
    return max(SCALE_SHARE, next(n for n in range(threshold, 2 * threshold + 2) if n - n // SCALE_SHARE >= threshold))


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
    count = len(episodes) // SCALE_SHARE if scale_episodes is None else scale_episodes
    if count < 1:
        raise MonitorError(
            f"{len(episodes)} calibration episodes leave none for the scale: record {SCALE_SHARE} or more."
        )
    scale = fit_scale(episodes[:count], normalisation)
    rest = [episode for episode in episodes[count:] if len(episode)]
    threshold = conformal_threshold([float(scores(e, scale, memory).max()) for e in rest], false_alarm_rate)
    return Calibration(scale, threshold, false_alarm_rate, memory, len(rest))
