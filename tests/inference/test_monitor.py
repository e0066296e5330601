"""Surprise, its scale and its threshold; the promise of the threshold is checked by counting."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wamkit.inference.monitor import Imagined, Monitor
from wamkit.inference.monitor_calibration import (
    Calibration,
    MonitorError,
    Scale,
    Surprise,
    calibrate,
    conformal_threshold,
    fit_scale,
    least_for_calibration,
    scores,
)


def imagined(now: float, later: float, horizon: float = 0.2) -> Imagined:
    """A world of one number: what is, and what is expected."""
    return Imagined(np.full((4, 2), now), np.full((1, 4, 2), later), np.array([horizon]))


def watched(monitor: Monitor, world, expected, ticks: int = 10, dt: float = 0.1) -> list:
    return [monitor.observe(dt * i, imagined(world(dt * i), expected(dt * i))) for i in range(ticks)]


def test_a_prediction_is_compared_when_its_moment_comes():
    monitor = Monitor()
    watched(monitor, world=lambda t: t, expected=lambda t: t + 0.5, ticks=5)
    assert [s.at for s in monitor.history] == pytest.approx([0.2, 0.3, 0.4])
    assert all(s.horizon == 0.2 for s in monitor.history)
    # Expected t - 0.2 + 0.5, seen t; copy-the-present would have said t - 0.2.
    assert [s.error for s in monitor.history] == pytest.approx([0.09] * 3)
    assert [s.change for s in monitor.history] == pytest.approx([0.04] * 3, rel=1e-4)


def test_looks_at_other_times_compare_nothing_and_are_counted():
    monitor = Monitor(tolerance_s=0.02)
    watched(monitor, lambda t: t, lambda t: t, ticks=8, dt=0.13)
    assert monitor.history == []
    assert monitor.unmatched == 6
    near = Monitor(tolerance_s=0.03)
    watched(near, lambda t: t, lambda t: t, ticks=8, dt=0.09)
    assert len(near.history) == 6


def test_several_horizons_wait_side_by_side():
    monitor = Monitor()
    for i in range(6):
        now = 0.1 * i
        values = np.stack([np.full((1, 1), now + 0.1), np.full((1, 1), 9.0)])
        monitor.observe(now, Imagined(np.full((1, 1), now), values, np.array([0.1, 0.3])))
    short = [s for s in monitor.history if s.horizon == 0.1]
    long = [s for s in monitor.history if s.horizon == 0.3]
    assert len(short) == 5
    assert max(s.error for s in short) < 1e-9
    assert [round(s.at, 3) for s in long] == [0.3, 0.4, 0.5]
    assert min(s.error for s in long) > 70


def test_scales_by_hand():
    episode = [Surprise(1.0, 0.2, error=0.2, change=c) for c in (0.1, 0.3, 0.8)]
    copy = fit_scale([episode], "copy_present")
    assert copy.usual == {"200": pytest.approx(0.3)}
    assert copy.value(episode[0]) == pytest.approx(0.2 / 0.4)
    horizon = fit_scale([episode, [Surprise(1.0, 0.4, 6.0, 1.0)]], "horizon")
    assert horizon.usual == {"200": pytest.approx(0.2), "400": pytest.approx(6.0)}
    assert horizon.value(Surprise(2.0, 0.4, 3.0, 0.0)) == pytest.approx(0.5)
    with pytest.raises(MonitorError, match=r"horizons of 200 ms and sees one of 400 ms"):
        copy.value(Surprise(2.0, 0.4, 3.0, 0.0))


def test_scales_refuse_what_cannot_be_measured():
    with pytest.raises(MonitorError, match="No prediction came true"):
        fit_scale([[], []])
    with pytest.raises(MonitorError, match="Nothing ever changed"):
        fit_scale([[Surprise(1.0, 0.2, 0.1, 0.0)]])
    with pytest.raises(MonitorError, match=r"no normalisation 'copy'.*copy_present"):
        fit_scale([[Surprise(1.0, 0.2, 0.1, 0.1)]], "copy")


def test_scores_average_the_last_ones():
    scale = Scale("horizon", {"200": 2.0})
    episode = [Surprise(0.1 * i, 0.2, error, 0.0) for i, error in enumerate((2.0, 4.0, 6.0))]
    assert scores(episode, scale).tolist() == [1.0, 2.0, 3.0]
    assert scores(episode, scale, memory=2).tolist() == [1.0, 1.5, 2.5]


def test_the_threshold_is_the_right_order_statistic():
    values = list(range(1, 20))  # n = 19: (n + 1)(1 - 0.05) = 19
    assert conformal_threshold(values, 0.05) == 19
    assert conformal_threshold(values, 0.1) == 18
    assert conformal_threshold(values[::-1], 0.5) == 10
    with pytest.raises(MonitorError, match=r"18 calibration episodes.*takes 19 or more"):
        conformal_threshold(values[:-1], 0.05)
    with pytest.raises(MonitorError, match="between 0 and 1"):
        conformal_threshold(values, 1.0)
    with pytest.raises(MonitorError, match="not finite"):
        conformal_threshold([1.0, math.nan], 0.5)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_promise_holds_for_an_odd_distribution(rate):
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        values = rng.pareto(1.0, 41)
        alarms += values[-1] > conformal_threshold(values[:-1], rate)
    # Expected: at most `rate`, and with 40 scores at least rate - 1/41; 3 standard deviations of 2000 draws.
    noise = 3 * math.sqrt(rate * (1 - rate) / 2000)
    assert rate - 1 / 41 - noise < alarms / 2000 < rate + noise


def episodes(count: int, error: float = 0.1, seed: int = 0) -> list[list[Surprise]]:
    rng = np.random.default_rng(seed)
    return [
        [Surprise(0.1 * i, 0.2, float(error * rng.uniform(0.5, 1.5)), 1.0) for i in range(2, 12)] for _ in range(count)
    ]


def test_scale_and_threshold_rest_on_different_episodes():
    calibration = calibrate(episodes(40), 0.1, normalisation="horizon")
    assert calibration.episodes == 30
    first = fit_scale(episodes(40)[:10], "horizon")
    assert calibration.scale == first
    greatest = sorted(scores(e, first).max() for e in episodes(40)[10:])
    assert calibration.threshold == pytest.approx(greatest[27])  # ceil(31 * 0.9) = 28
    with pytest.raises(MonitorError, match="takes 19 or more"):
        calibrate(episodes(20), 0.05)


@pytest.mark.parametrize(("rate", "least"), [(0.05, 25), (0.1, 11), (0.2, 5), (0.5, 4), (1 / 3, 4), (0.01, 131)])
def test_as_many_episodes_as_a_rate_needs_are_enough_and_one_less_is_not(rate, least):
    assert least_for_calibration(rate) == least
    many = [[Surprise(1.0, 0.2, 0.1 * (1 + i), 1.0)] for i in range(least)]
    assert calibrate(many, rate).episodes == least - least // 4
    with pytest.raises(MonitorError, match=r"or more"):
        calibrate(many[:-1], rate)


def test_an_alarm_is_raised_by_what_was_not_imagined():
    quiet = Monitor()
    clean = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        quiet.reset()
        for i in range(12):
            at = 0.1 * i
            quiet.observe(at, imagined(at, at + 0.2 + 0.02 * rng.normal()))
        clean.append(quiet.history)
    monitor = Monitor(calibrate(clean, 0.05))
    calm = watched(monitor, lambda t: t, lambda t: t + 0.21, ticks=12)
    assert calm == [None] * 12
    monitor.reset()
    # At 0.55 s the world stops, and the model goes on expecting motion.
    alarms = watched(monitor, lambda t: min(t, 0.55), lambda t: t + 0.2, ticks=12)
    raised = [alarm for alarm in alarms if alarm is not None]
    assert raised[0].at == pytest.approx(0.7, abs=0.11)
    assert raised[0].score > raised[0].threshold == monitor.calibration.threshold
    assert alarms[:6] == [None] * 6


def test_time_runs_forward():
    monitor = Monitor()
    monitor.observe(0.5, imagined(0.0, 0.0))
    with pytest.raises(MonitorError, match="call reset"):
        monitor.observe(0.5, imagined(0.0, 0.0))
    monitor.reset()
    monitor.observe(0.0, imagined(0.0, 0.0))


def test_a_calibration_comes_back_from_its_file(tmp_path):
    calibration = replace(calibrate(episodes(40), 0.1, memory=2), checkpoint="a" * 64, made={"trials": [7, 47]})
    calibration.save(tmp_path / "monitor.json")
    assert Calibration.load(tmp_path / "monitor.json") == calibration
    (tmp_path / "monitor.json").write_text("{}")
    with pytest.raises(MonitorError, match=r"is no calibration.*wam calibrate"):
        Calibration.load(tmp_path / "monitor.json")


def test_a_calibration_is_of_one_checkpoint():
    calibration = calibrate(episodes(40), 0.1)
    with pytest.raises(MonitorError, match="does not say which checkpoint"):
        calibration.refuse_other("a" * 64)
    ours = replace(calibration, checkpoint="a" * 64, made={"tasks": ["door-open-v3"]})
    ours.refuse_other("a" * 64)
    with pytest.raises(MonitorError, match=r"of checkpoint aaaaaaaaaaaa and this one is bbbbbbbbbbbb.*wam calibrate"):
        ours.refuse_other("b" * 64)
