"""Prometheus' text format, as its parser wants it."""

from __future__ import annotations

from wamkit.serving.metrics import Counter, Gauge, Histogram


def test_a_counter_with_a_label():
    counter = Counter("asked_total", "Asked.", "reason")
    counter.add(label='a "quoted"\nline')
    counter.add(2, label="plain")
    assert counter.total == 3
    assert counter.lines() == [
        "# HELP asked_total Asked.",
        "# TYPE asked_total counter",
        'asked_total{reason="a \\"quoted\\"\\nline"} 1',
        'asked_total{reason="plain"} 2',
    ]


def test_a_counter_without_label_starts_at_zero():
    assert Counter("asked_total", "Asked.").lines()[-1] == "asked_total 0"
    assert Gauge("level", "Level.", lambda: 0.25).lines()[-1] == "level 0.25"


def test_a_histogram_is_cumulative():
    histogram = Histogram("seconds", "Time.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.lines()[2:] == [
        'seconds_bucket{le="0.1"} 2',
        'seconds_bucket{le="1"} 3',
        'seconds_bucket{le="+Inf"} 4',
        f"seconds_sum {0.05 + 0.1 + 0.5 + 7.0:.17g}",
        "seconds_count 4",
    ]
