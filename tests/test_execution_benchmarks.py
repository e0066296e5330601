"""The benchmarks of "Real time": what they compute, and toy runs that reach the end and go on where they stopped."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def benchmark(name: str) -> ModuleType:
    """A file of ``benchmarks/`` as a module, found as when it runs alone."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_jerk_is_the_third_derivative():
    reaction = benchmark("reaction")
    t = np.arange(50) / 80.0
    path = np.stack([t**3, 5 * t**2, 7 * t], axis=1)  # 6 m/s^3 along x, none along y and z
    assert reaction.jerk(path, 80.0) == pytest.approx(6.0, rel=1e-6)
    assert reaction.jerk(path[:3], 80.0) == 0.0


def record(task: str, trial: int, errors: list[float], **fields) -> dict:
    surprises = [[0.1 * i, 0.2, error, 0.0] for i, error in enumerate(errors)]
    base = {"task": task, "trial": trial, "steps": 8 * len(errors) + 1, "onset_s": 0.3, "success": True, "seed": 0}
    return base | {"surprises": surprises, "struck": True, "alarms_s": []} | fields


def test_separation_compares_the_same_stretch_of_the_same_trial():
    monitor = benchmark("monitor")
    from wamkit.inference.monitor_calibration import Scale

    scale, options = Scale("horizon", {"200": 1.0}), SimpleNamespace(memory=1)
    clean = {("a", trial): record("a", trial, [9.0, 1.0, 1.0, 1.0, 1.0 + trial]) for trial in range(3)}
    # Before the onset, and after the clean partner has ended, nothing counts.
    same = [record("a", trial, [9.0, 1.0, 50.0, 1.0, 1.0 + trial, 1.0, 99.0]) for trial in range(3)]
    assert monitor.separation(same, clean, scale, options, 80.0)["auroc"] == 0.5
    worse = [record("a", trial, [0.0, 0.0, 0.0, 6.0, 0.0]) for trial in range(3)]
    assert monitor.separation(worse, clean, scale, options, 80.0)["auroc"] == 1.0
    early = {key: value | {"surprises": value["surprises"][:2]} for key, value in clean.items()}
    assert monitor.separation(worse, early, scale, options, 80.0) is None


def test_alarms_before_the_fault_are_no_detections():
    monitor = benchmark("monitor")
    alone = [
        record("a", 0, [1.0] * 5, alarms_s=[0.4, 0.5]),
        record("a", 1, [1.0] * 5, alarms_s=[0.2, 0.4]),
        record("a", 2, [1.0] * 5, success=False),
        record("a", 3, [1.0] * 5, struck=False, alarms_s=[0.1]),
    ]
    clean = {("a", trial): record("a", trial, [1.0] * 5) for trial in range(4)}
    row = monitor.summarise("moved_object", alone, alone, clean, {}, SimpleNamespace(memory=1), 80.0)
    assert (row["struck"], row["detected"]["successes"], row["detected"]["n"]) == (3, 1, 2)
    assert row["delay_s"]["0.5"] == pytest.approx(0.1)
    assert row["success_alone"]["successes"] == 3


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.usefixtures("rendering")
def test_reaction_runs_and_goes_on(tmp_path, capsys):
    reaction = benchmark("reaction")
    flags = ["--toy", "--json", "--policy", str(tmp_path / "none"), "--output_dir", str(tmp_path / "r")]
    flags += ["--executors", "synchronous", "real_time_chunking"]
    reaction.main(flags)
    result = last_line(capsys)
    cells = {(cell["executor"], cell["latency_chunks"]): cell for cell in result["cells"]}
    assert len(cells) == 4
    assert {cell["latency_ticks"] for cell in cells.values()} == {0, 8}
    assert cells["synchronous", 0.0]["held_share"] == 0
    # 24 ticks: 8 of waiting, 8 of acting, 8 of waiting; chunking waits for the first answer only.
    assert cells["synchronous", 0.5]["held_share"] == pytest.approx(2 / 3)
    assert cells["real_time_chunking", 0.5]["held_share"] == pytest.approx(1 / 3)
    assert {line["deadline_steps"] for line in result["comparisons"]} == {24, 12}
    log = (tmp_path / "r/episodes.jsonl").read_text()
    (tmp_path / "r/episodes.jsonl").write_text("".join(log.splitlines(keepends=True)[:-1]) + '{"cut')
    reaction.main(flags)
    assert [cell["executor"] for cell in last_line(capsys)["cells"]] == [cell["executor"] for cell in result["cells"]]
    # What was finished is not done again; what was cut is.
    *kept, repeated = (tmp_path / "r/episodes.jsonl").read_text().splitlines()
    assert kept == log.splitlines()[:-1]
    assert {**json.loads(repeated), "jerk": 0} == {**json.loads(log.splitlines()[-1]), "jerk": 0}
    tables = benchmark("_tables")
    assert any("`real_time_chunking`" in line for line in tables.reaction(result))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.usefixtures("rendering")
def test_the_monitor_is_measured(tmp_path, capsys):
    monitor = benchmark("monitor")
    monitor.main(["--toy", "--json", "--policy", str(tmp_path / "none"), "--output_dir", str(tmp_path / "m")])
    result = last_line(capsys)
    clean, occluded = result["rows"]
    assert (clean["fault"], occluded["fault"]) == ("clean", "occluded_camera")
    assert clean["success_alone"]["n"] == occluded["success_hand_over"]["n"] == 1
    assert occluded["auroc"].keys() == {"copy_present", "horizon"}
    assert result["calibration"]["episodes"] == 4
    assert (tmp_path / "m/calibration.json").is_file()
    assert any("occluded" in line for line in benchmark("_tables").monitor(result))
