"""Statistics: exact, of all rows, and refused where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.data.statistics import NormalizationError, affine_of, merged, statistics_of

EMPTY = {"q01": np.zeros(3), "q99": np.zeros(3)}
ROWS = np.random.default_rng(1).normal(size=(400, 3))


def test_they_are_numpys():
    found = statistics_of(ROWS)
    assert np.allclose(found["q01"], np.quantile(ROWS, 0.01, axis=0))
    assert np.allclose(found["std"], ROWS.std(0))
    assert found["count"].tolist() == [400]


def test_merged_recordings_are_as_one():
    together = merged([{"action": ROWS[:100]}, {"action": ROWS[100:], "observation.state": ROWS}])
    assert np.allclose(together["action"]["q90"], statistics_of(ROWS)["q90"])
    assert together["observation.state"]["count"].tolist() == [400]


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(3)])
def test_nothing_has_no_statistics(values):
    with pytest.raises(NormalizationError, match="rows of vectors"):
        statistics_of(values)


def test_values_that_are_not_finite_name_their_dimensions():
    rows = ROWS.copy()
    rows[3, 2] = np.inf
    with pytest.raises(NormalizationError, match=r"dimensions \[2\]"):
        statistics_of(rows)


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        ("MEAN_STD", {"std": None}, r"lack std, which MEAN_STD needs"),
        ("QUANTILES", {"q01": None, "q99": None}, r"lack q01, q99"),
        ("MIN_MAX", {"max": np.array([1.0, np.nan, 1.0])}, r"max of 'action' .* not finite in dimensions \[1\]"),
        ("MIN_MAX", {"max": np.array([1.0, 2.0])}, r"differ in shape"),
        ("MEAN_STD", {"std": np.array([1.0, -1.0, 1.0])}, r"negative spread in dimensions \[1\]"),
        ("QUANTILES", EMPTY | {"min": None}, r"coincide in dimensions \[0, 1, 2\]"),
        (
            "QUANTILES",
            EMPTY | {"min": np.full(3, -np.inf)},
            r"min and max .* not finite",
        ),
    ],
)
def test_statistics_that_cannot_be_used(mode, change, message):
    found = {name: value for name, value in (statistics_of(ROWS) | change).items() if value is not None}
    with pytest.raises(NormalizationError, match=message):
        affine_of(found, mode, 1e-4, "'action' of 'droid'")
