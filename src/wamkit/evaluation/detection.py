"""How well a score tells two kinds of episodes apart, and how late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from wamkit.evaluation.statistics import StatisticsError


def auroc(faulty: Sequence[float] | np.ndarray, clean: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve: the chance that a faulty episode scores above a clean one, ties counting half.

    Raises:
        StatisticsError: one side is empty.
    """
    from scipy.stats import mannwhitneyu

    if not len(faulty) or not len(clean):
        raise StatisticsError("An AUROC needs faulty and clean episodes: run at least one of each.")
    statistic = cast("Any", mannwhitneyu(faulty, clean, method="asymptotic")).statistic
    return float(statistic) / (len(faulty) * len(clean))


def paired_auroc(
    faulty: Sequence[float], clean: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """AUROC of scores that come in pairs, such as the same trial with and without a fault.

    Args:
        faulty: Scores with the fault.
        clean: Scores of the same trials without it, in the same order.
        resamples: Of the bootstrap over trials, which keeps each pair together.
        seed: Of the bootstrap.

    Returns:
        ``auroc``, ``ci95`` (percentiles) and ``n`` (pairs).
    """
    if len(faulty) != len(clean):
        raise StatisticsError(f"{len(faulty)} faulty and {len(clean)} clean scores are no pairs.")
    above, below = np.asarray(faulty, np.float64), np.asarray(clean, np.float64)
    area = auroc(above, below)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(above), (resamples, len(above)))
    areas = [auroc(above[draw], below[draw]) for draw in draws]
    return {"auroc": area, "ci95": [float(end) for end in np.percentile(areas, (2.5, 97.5))], "n": len(above)}


def mean_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The mean of one number for each episode, with a 95 % bootstrap interval over episodes.

    Raises:
        StatisticsError: there is none.
    """
    if not len(values):
        raise StatisticsError("A mean over no episodes is not a number: run at least one.")
    array = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    ends = np.percentile(array[draws].mean(axis=1), (2.5, 97.5))
    return {"mean": float(array.mean()), "ci95": [float(end) for end in ends], "n": len(array)}
