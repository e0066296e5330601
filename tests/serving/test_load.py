"""The load of benchmarks/serving.py at the suite's size: nothing lost or mixed up, nothing forgotten at SIGTERM."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_under_load_nothing_is_lost_or_mixed_up(benchmark, last_line):
    serving = benchmark("serving")
    flags = ["--clients", "4", "--requests", "800", "--processes", "0", "--size", "32", "--infer_ms", "1"]
    serving.main([*flags, "--reading_s", "0.1", "--before_stop_s", "0.3", "--json"])
    result = last_line()

    load = result["load"]
    assert (load["answered"], load["lost"], load["mixed_up"], load["reconnections"]) == (800, 0, 0, 0)
    assert load["server_said"] == {"accepted": 800, "answered": 800, "refused": 0, "undelivered": 0}
    assert load["exit_status"] == 0
    memory = load["memory"]
    assert memory["last_quarter_mib"] - memory["second_quarter_mib"] < 10

    stopped = result["sigterm"]
    assert stopped["accepted"] == stopped["answered"] == stopped["received"] >= 40
    assert (stopped["mixed_up"], stopped["exit_status"], stopped["close_codes"]) == (0, 0, [1001])
    assert stopped["shutdown_s"] < 10
