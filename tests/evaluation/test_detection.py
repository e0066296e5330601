"""Areas and intervals against values that are known."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.evaluation.detection import auroc, mean_interval, paired_auroc
from wamkit.evaluation.statistics import StatisticsError


def test_auroc_counts_pairs_and_halves_ties():
    assert auroc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auroc([1.0], [2.0]) == 0.0
    assert auroc([1.0, 3.0], [1.0, 2.0]) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.7, 1, 30), rng.normal(0, 1, 40)
    by_hand = np.mean([a > b for a in one for b in other])
    assert auroc(one, other) == pytest.approx(by_hand)
    with pytest.raises(StatisticsError, match="at least one"):
        auroc([], [1.0])


def test_the_interval_of_an_auroc_holds_its_value_and_shrinks():
    rng = np.random.default_rng(1)
    few, many = (paired_auroc(rng.normal(1, 1, n), rng.normal(0, 1, n)) for n in (10, 200))
    for found in (few, many):
        low, high = found["ci95"]
        assert low < found["auroc"] < high
    assert many["ci95"][0] < 0.76 < many["ci95"][1]  # Phi(1 / sqrt 2)
    assert np.diff(many["ci95"]) < 0.5 * np.diff(few["ci95"])
    with pytest.raises(StatisticsError, match="no pairs"):
        paired_auroc([1.0], [1.0, 2.0])


def test_means():
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert 1.0 < found["ci95"][0] < 2.5 < found["ci95"][1] < 4.0
    with pytest.raises(StatisticsError, match="at least one"):
        mean_interval([])
