"""Embodiment numbers are stored in checkpoints: they must never move."""

from __future__ import annotations

import pytest

from wamkit.data.embodiments import (
    EMBODIMENTS,
    MAX_EMBODIMENTS,
    UnknownEmbodimentError,
    embodiment_id,
    embodiment_name,
)
from wamkit.errors import WamkitError


def test_published_numbers_are_fixed():
    fixed = {"human": 0, "metaworld": 1, "droid": 2, "bridge": 3, "rt1": 4, "unitree_g1": 5, "pusht": 6, "robotwin": 7}
    assert {name: embodiment_id(name) for name in fixed} == fixed
    assert embodiment_id("libero") == 25


def test_numbers_are_distinct_and_in_range():
    assert len(set(EMBODIMENTS.values())) == len(EMBODIMENTS)
    assert all(0 <= number < MAX_EMBODIMENTS for number in EMBODIMENTS.values())
    assert all(embodiment_name(number) == name for name, number in EMBODIMENTS.items())


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(UnknownEmbodimentError, match=r"Unknown embodiment 'metaword'\. Did you mean 'metaworld'\?"):
        embodiment_id("metaword")
    with pytest.raises(WamkitError, match="number 30"):
        embodiment_name(30)
