"""Intervals against reference values, and what must hold for any counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from wamkit.evaluation.statistics import (
    StatisticsError,
    compare,
    episodes_needed,
    format_rate,
    holm,
    paired_difference_interval,
    rates_by,
    side_by_side,
    success_rate,
    wilson_interval,
)


def episodes(arm: str, outcomes, task: str = "push", seed: int = 0):
    return [
        {"arm": arm, "task": task, "trial": trial, "seed": seed, "success": bool(ok)}
        for trial, ok in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score without correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


@given(n=st.integers(1, 400), share=st.floats(0, 1))
def test_wilson_holds_the_rate_and_mirrors(n, share):
    k = round(share * n)
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_no_episodes_is_refused():
    with pytest.raises(StatisticsError, match="at least one episode"):
        success_rate([])
    with pytest.raises(StatisticsError, match="cannot be"):
        wilson_interval(5, 4)


def test_rates_by_task_and_seed():
    run = episodes("policy", [1, 1, 0, 1]) + episodes("policy", [0, 0], task="reach", seed=1)
    assert rates_by(run, "task")["push"].successes == 3
    assert [rate.n for rate in rates_by(run, "seed").values()] == [4, 2]


def test_tango_interval_matches_the_airway_example():
    # Bentur et al. 2009 as worked in Fagerland, Lydersen, Laake (2014): 1 and 7 discordant of 21.
    assert paired_difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=6e-4)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_tango_interval_ends_where_the_score_test_rejects(only_a, only_b, concordant):
    n = only_a + only_b + concordant
    if n == 0:
        return
    low, high = paired_difference_interval(only_a, only_b, n)
    estimate = (only_a - only_b) / n
    assert -1 <= low <= estimate <= high <= 1
    assert paired_difference_interval(only_b, only_a, n) == pytest.approx((-high, -low), abs=1e-7)
    for delta in (low, high):
        if abs(delta) > 0.999:
            continue

        def negative_log_likelihood(p_b, delta=delta):
            parts = [(only_a, p_b + delta), (only_b, p_b), (concordant, 1 - 2 * p_b - delta)]
            return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

        # The constrained maximum likelihood found numerically, not by the closed form under test.
        fit = minimize_scalar(
            negative_log_likelihood,
            bounds=(max(0.0, -delta), (1 - delta) / 2),
            method="bounded",
            options={"xatol": 1e-10},
        )
        variance = (2 * fit.x + delta * (1 - delta)) / n
        assert abs(estimate - delta) / math.sqrt(variance) == pytest.approx(1.959964, abs=5e-3)


def test_mcnemar_counts_and_exact_p():
    ours = episodes("policy", [1] * 8 + [0] * 13)
    theirs = episodes("blind", [1] + [0] * 7 + [1] + [0] * 12)
    result = compare(ours + theirs + episodes("noop", [0] * 21), "policy", "blind")
    assert (result.both, result.only_arm, result.only_baseline, result.neither) == (1, 7, 1, 12)
    assert result.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert result.difference == pytest.approx(6 / 21)
    assert result.paired_on == ("task", "trial")
    assert result.to_json()["ci95"][0] > 0


def test_equal_arms_give_no_evidence():
    result = compare(episodes("a", [1, 0, 1]) + episodes("b", [1, 0, 1]), "a", "b")
    assert (result.difference, result.p_value) == (0.0, 1.0)


def test_pairing_uses_the_seed_only_where_trials_repeat():
    several = [e for seed in range(3) for e in episodes("a", [1, 0, 1], seed=seed)]
    partner = [e for seed in range(3) for e in episodes("b", [0, 0, 1], seed=seed)]
    result = compare(several + partner, "a", "b")
    assert (result.n, result.paired_on) == (9, ("task", "trial", "seed"))
    # One arm, one seed, ran under another seed number: the initial state is still (task, trial).
    assert compare(episodes("a", [1], seed=0) + episodes("b", [0], seed=7), "a", "b").n == 1
    with pytest.raises(StatisticsError, match="twice"):
        compare(episodes("a", [1]) * 2 + episodes("b", [1]), "a", "b")


def test_arms_without_a_common_trial_are_refused_and_leftovers_counted():
    with pytest.raises(StatisticsError, match="share no"):
        compare(episodes("a", [1]) + episodes("b", [1], task="other"), "a", "b")
    assert compare(episodes("a", [1, 1, 1]) + episodes("b", [1]), "a", "b").unpaired == 2


def test_holm_reference():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_episodes_needed_independent_reference():
    # Arcsine formula by hand: h = 2 asin(sqrt(.9)) - 2 asin(sqrt(.8)); n = 2 ((1.95996 + .84162) / h)^2.
    h = 2 * math.asin(math.sqrt(0.9)) - 2 * math.asin(math.sqrt(0.8))
    assert episodes_needed(0.9, 0.8) == math.ceil(2 * ((1.959964 + 0.841621) / h) ** 2) == 195
    assert episodes_needed(1.0, 0.0) == 2
    with pytest.raises(StatisticsError, match="must differ"):
        episodes_needed(0.5, 0.5)


def test_paired_count_really_has_the_power():
    n = episodes_needed(0.9, 0.8, discordance=0.14)
    assert n < episodes_needed(0.9, 0.8)
    rng = np.random.default_rng(0)
    table = rng.multinomial(n, [0.12, 0.02, 0.86], size=400)
    seen = 0
    for only_a, only_b, _ in table:
        total = only_a + only_b
        tail = sum(math.comb(total, i) for i in range(min(only_a, only_b) + 1)) / 2**total
        seen += min(1.0, 2 * tail) <= 0.05
    assert 0.70 <= seen / 400 <= 0.88  # the exact test is a little conservative
    with pytest.raises(StatisticsError, match="below the difference"):
        episodes_needed(0.9, 0.8, discordance=0.05)


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_closer_rates_need_more_episodes(a, b):
    if abs(a - b) < 0.02:
        return
    middle = (a + b) / 2
    assert episodes_needed(a, middle) >= episodes_needed(a, b)


def test_side_by_side_names_what_was_not_run():
    cell = success_rate([True] * 9 + [False]).to_json()
    arms = {
        "policy": {"overall": cell, "tasks": {"push": cell, "reach": cell}},
        "blind": {"overall": cell, "tasks": {"push": cell}},
    }
    table = side_by_side(arms)
    assert [name for name, _ in table.rows] == ["push", "reach", "overall"]
    text = "\n".join(table.lines())
    assert "not run" in text
    assert format_rate(success_rate([True] * 9 + [False])) == "90 % [60, 98] 9/10"
    assert "90 % [60, 98] 9/10" in text
