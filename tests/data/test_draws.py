"""Counter-based draws: permutations without writing them out, weights, and nothing that depends on history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamkit.data.draws import BLOCK, Schedule, mix, permuted, quotas, uniform


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**40))
def test_permuted_is_a_permutation_at_every_size(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_epochs_are_permuted_differently_and_elementwise():
    index, epochs = np.arange(100), np.repeat([0, 1], 50)
    both = permuted(np.tile(np.arange(50), 2), 50, 7, epochs)
    assert both[:50].tolist() == permuted(index[:50], 50, 7, 0).tolist()
    assert both[:50].tolist() != both[50:].tolist()


def test_permuted_leaves_no_visible_order():
    order = permuted(np.arange(5000), 5000, 3)
    assert abs(np.corrcoef(np.arange(5000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_hashes_are_frozen_so_that_old_runs_resume():
    assert mix(1, 2, 3).item() == 711829647935672235
    assert permuted(np.arange(5), 5, 0).tolist() == [3, 4, 2, 1, 0]


def test_uniform_is_uniform():
    drawn = uniform(5, np.arange(20000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    assert np.histogram(drawn, 10)[0].min() > 1800


def test_quotas_follow_weights_and_forget_nobody():
    assert quotas([1, 1, 2]).tolist() == [BLOCK // 4, BLOCK // 4, BLOCK // 2]
    tiny = quotas([1e-9, 1.0, 1e-9])
    assert tiny.sum() == BLOCK
    assert tiny.min() == 1


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [0.2, 0.5, 0.3]])
def test_schedule_numbers_each_data_sets_draws_without_gaps(weights):
    labels, numbers = Schedule(weights, 11).locate(np.arange(3 * BLOCK))
    for label in range(len(weights)):
        assert numbers[labels == label].tolist() == list(range((labels == label).sum()))


def test_schedule_is_the_same_asked_at_once_or_one_by_one():
    schedule, counters = Schedule([2.0, 1.0], 4), np.arange(BLOCK - 20, BLOCK + 20)
    together = np.stack(schedule.locate(counters), axis=1)
    alone = [np.stack(Schedule([2.0, 1.0], 4).locate(counters[i : i + 1]), axis=1)[0] for i in range(40)]
    assert together.tolist() == np.array(alone).tolist()
