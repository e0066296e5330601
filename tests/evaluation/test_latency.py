"""The protocol of latency: when a warm-up ends, what percentiles and ratios say, and what a report is given."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from wamkit.evaluation import latency
from wamkit.evaluation.latency import GLANCE, LatencyError, Protocol, compare, measure, ratio, summarise, warm_up

QUICK = Protocol(ring=3, window=4, least_warm_up=4, most_warm_up=40, calls=80, slow_calls=32, resamples=200)


@pytest.fixture
def clock(monkeypatch):
    """Calls take as long as a script says; the numbers they were called with are kept."""

    def install(seconds, seen=None):
        script = iter(seconds)

        def timed(call, index):
            call(index)
            if seen is not None:
                seen.append(index)
            return next(script)

        monkeypatch.setattr(latency, "timed", timed)

    return install


def test_warm_up_ends_when_three_windows_agree(clock):
    seen = []
    clock(itertools.chain([9.0] * 4, [5.0] * 4, itertools.repeat(1.0)), seen)
    result = warm_up(lambda index: None, QUICK)
    assert result["settled"]
    assert result["calls"] == 20  # windows of 9, 5, 1, 1 and 1 seconds
    assert result["first_ms"] == 9000
    assert seen[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_warm_up_gives_up_and_says_so(clock):
    clock(itertools.count(1.0))
    result = warm_up(lambda index: None, QUICK)
    assert not result["settled"]
    assert result["calls"] == QUICK.most_warm_up


def test_warm_up_keeps_to_its_time(clock):
    clock(itertools.repeat(1.0))
    bounded = replace(QUICK, agree=-1.0, warm_up_s=10.0)
    result = warm_up(lambda index: None, bounded)
    assert (result["calls"], result["settled"]) == (10, False)
    clock(itertools.repeat(99.0))
    assert warm_up(lambda index: None, bounded)["calls"] == 1


def test_timed_calls_are_cut_to_their_time_before_the_first(clock):
    bounded = replace(QUICK, measure_s=144.0)
    assert latency.calls_of(bounded, 0.1) == QUICK.calls
    assert latency.calls_of(bounded, 100.0) == 1
    clock(itertools.chain([1.0, 2.0], itertools.repeat(1.0)))
    result = compare(lambda index: None, lambda index: None, bounded)
    # 1 s and 2 s a call: 48 of each in 144 s, but calls of over half a second are 32 by the protocol.
    assert result["first"]["n"] == result["second"]["n"] == 32
    assert not result["cut"]
    clock(itertools.chain([1.0, 2.0], itertools.repeat(1.0)))
    result = compare(lambda index: None, lambda index: None, replace(QUICK, measure_s=48.0))
    assert result["first"]["n"] == result["second"]["n"] == 16
    assert result["cut"]


def test_the_defaults_are_those_of_published_results():
    protocol = Protocol()
    assert (protocol.ring, protocol.window, protocol.agree, protocol.least_warm_up) == (16, 20, 0.02, 50)
    assert (protocol.calls, protocol.slow_calls) == (1000, 200)
    assert latency.calls_of(protocol, 0.51) == 200
    assert latency.calls_of(protocol, 0.49) == 1000


def test_percentiles_and_the_interval_of_the_median():
    seconds = np.arange(1, 1001) / 1000
    summary = summarise(seconds, Protocol())
    assert summary["n"] == 1000
    assert summary["p50_ms"] == pytest.approx(500.5)
    assert summary["p90_ms"] == pytest.approx(900.1)
    assert summary["p99_ms"] == pytest.approx(990.01)
    assert summary["max_ms"] == 1000
    low, high = summary["p50_ci95_ms"]
    # The median of n uniform draws has standard error about 1 / (2 sqrt(n)) of the range.
    assert 450 < low < 480 < 500.5 < 520 < high < 550
    with pytest.raises(LatencyError):
        summarise(np.array([]), Protocol())


def test_ratio_holds_the_truth():
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(2.0, 0.1, (4, 125)), rng.normal(1.0, 0.1, (4, 125))
    result = ratio(slow, fast, 500)
    assert result["ci95"][0] < 2.0 < result["ci95"][1]
    assert result["ci95"][1] - result["ci95"][0] < 0.1
    null = ratio(slow[::2], slow[1::2], 500)
    assert null["ci95"][0] < 1.0 < null["ci95"][1]


def test_rounds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    fast = rng.normal(1.0, 0.01, (4, 50))
    alike, apart = fast + 1.0, fast * np.array([[1.2], [2.8], [1.1], [2.9]])
    narrow, wide = (ratio(slow, fast, 300)["ci95"] for slow in (alike, apart))
    assert wide[1] - wide[0] > 10 * (narrow[1] - narrow[0])


def test_blocks_come_as_a_b_b_a_and_a_is_compared_with_itself(clock):
    order = []
    clock(itertools.repeat(1.0))
    result = compare(lambda index: order.append("A"), lambda index: order.append("B"), QUICK)
    blocks = [name for name, _ in itertools.groupby(order[2:])]  # the first call of each only asks how long one takes
    assert blocks == ["A", *["B", "A"] * 4]
    assert order[2:].count("A") == order[2:].count("B") == result["first"]["n"] == result["second"]["n"]
    assert result["blocks"] == "ABBA" * 4
    assert result["ratio"] == result["null"]["ratio"] == 1.0


def test_a_drift_of_the_machine_meets_both_alike(clock):
    clock(1.0 + 0.01 * step for step in itertools.count())
    result = compare(lambda index: None, lambda index: None, QUICK)
    for same in (result, result["null"]):
        assert same["ratio"] == pytest.approx(1.0, abs=0.02)
        assert same["ci95"][0] < 1.0 < same["ci95"][1]
    assert result["drift"] < 0.9


def test_the_null_test_sees_blocks_that_a_neighbour_slowed(clock):
    """A block of A that something else slowed makes the ratio wrong, and is no drift that the order cancels."""
    calls = itertools.count(-2)
    slowed = range(QUICK.slow_calls // 8)
    clock(3.0 if next(calls) % (8 * len(slowed)) in slowed else 1.0 for _ in itertools.count())
    result = compare(lambda index: None, lambda index: None, QUICK)
    assert result["null"]["ratio"] == pytest.approx(2.0)


def test_measuring_leaves_the_garbage_collector_as_it_was():
    import gc

    assert gc.isenabled()
    inside = []
    seconds = measure(lambda index: inside.append(gc.isenabled()), 3, QUICK)
    assert inside == [False] * 3
    assert gc.isenabled()
    assert (seconds > 0).all()
    assert len(seconds) == 3


@pytest.fixture(scope="module")
def policy():
    from wamkit.evaluation.latency_policy import untrained_policy
    from wamkit.inference.runtime import Runtime
    from wamkit.models.lawam import preset

    tiny = preset("tiny")
    policy = untrained_policy("lawam", replace(tiny, action=replace(tiny.action, layers=4, denoise_steps=2)))
    policy.runtime = Runtime(policy.model)
    return policy


def test_an_untrained_policy_acts_at_both_boundaries(policy):
    from wamkit.evaluation.latency_policy import description, model_call, observation_ring, policy_call

    ring = observation_ring(policy, 2)
    assert not np.array_equal(ring[0]["observation.images.corner2_near"], ring[1]["observation.images.corner2_near"])
    chunk = policy_call(policy, ring)(1)
    again = policy_call(policy, ring)(1)
    assert np.array_equal(chunk.actions.numpy(), again.actions.numpy())
    assert chunk.actions.shape[-1] == len(policy.contract.bodies[0].action.names)
    assert model_call(policy, ring)(0).actions.shape[1:] == policy.model.action_noise_shape
    said = description(policy)
    assert said["denoise_steps"] == 2
    assert said["parameters"] == sum(p.numel() for p in policy.model.parameters())


def test_an_untrained_policy_reads_no_published_file():
    from wamkit.evaluation.latency_policy import observation_ring, untrained_policy
    from wamkit.models.light_wam import preset

    tiny = preset("tiny")
    config = replace(tiny, text=replace(tiny.text, weights="no/such/weights", prompt="Do this: {task}"))
    policy = untrained_policy("light_wam", config)
    assert policy.act(observation_ring(policy, 1)[0]).actions.isfinite().all()


def test_latency_by_part_for_a_report(policy, tmp_path):
    from wamkit.cli.report import LATENCY_FILE, report_on
    from wamkit.evaluation.latency_policy import short_latency
    from wamkit.evaluation.results import write_json

    fewer = Protocol(**vars(GLANCE) | {"calls": 3, "window": 1, "least_warm_up": 1, "most_warm_up": 3})
    measured = short_latency(policy, fewer)
    assert list(measured["parts"]) == ["vision_encoder", "vlm", "lawm", "action_context", "denoise_loop"]
    assert measured["boundary"] == "policy"
    assert measured["plain_p50_ms"] > 0
    assert measured["total"]["p50_ms"] > measured["parts"]["vision_encoder"]["p50_ms"] > 0
    write_json(tmp_path / LATENCY_FILE, measured | {"provenance": {"date": "2026-01-01"}})
    assert json.loads((tmp_path / LATENCY_FILE).read_text())["device"] == "cpu"
    html = report_on(tmp_path).read_text()
    section = html[html.index('<section id="latency">') : html.index('<section id="absent">')]
    assert "denoise loop" in section
    assert "one chunk" in section
    assert "2026-01-01" not in section
    assert "2026-01-01" in html
