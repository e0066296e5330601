"""Every example runs, in order, at toy size, and leaves or says what its reader is told."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(number: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs ``examples/<number>_*.py --toy`` as ``__main__`` and returns what it printed."""
    (path,) = EXAMPLES.glob(f"{number}_*.py")
    arguments, sys.argv = sys.argv, [str(path), "--toy"]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = arguments
    return capsys.readouterr().out


def test_numbered_without_gaps():
    numbers = [int(path.name[:2]) for path in sorted(EXAMPLES.glob("*.py"))]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name}" in path.read_text(), f"{path.name} does not say how it is run"


def test_a_video_becomes_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = run("02", capsys)
    assert "understood as 'video'" in said
    assert "states: None; actions: None" in said
    assert "uint8 (96, 128, 3)" in said
    assert "understood as 'video'" in run("02", capsys)  # a second time, over what the first left


def test_a_model_of_ones_own_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = run("08", capsys)
    before, after = (float(word.strip("'},")) for word in said.split("'action': '")[1].split("\n")[0].split(" -> "))
    assert after < 0.8 * before
    assert (tmp_path / "outputs/examples/colour_grid/checkpoints/last/pretrained_model/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("rendering")
def test_from_recording_to_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = run("01", capsys)
    assert "4 episodes" in said
    assert "rows at 80 Hz, new pictures at 40 Hz" in said

    said = run("03", capsys)
    assert "80 Hz, 16 actions at [0.0, 0.0125, 0.025, 0.0375]" in said
    assert "20 Hz, 4 actions at [0.0, 0.05, 0.1, 0.15]" in said

    assert run("04", capsys).strip().endswith("checkpoints/last/pretrained_model")

    said = run("05", capsys)
    assert "stage 'policy', looks through corner2_near" in said
    assert "16 actions over 0.188 s" in said

    said = run("06", capsys)
    assert said.count("copy-the-present") == 3
    assert "(1, 1, 64, 128), 0.2 s ahead" in said

    said = run("07", capsys)
    assert "no_op" in said
    results = json.loads((tmp_path / "outputs/examples/evaluation/eval.json").read_text())
    assert {name: arm["overall"]["n"] for name, arm in results["arms"].items()} == dict.fromkeys(
        ("policy", "blind", "no_op"), 1
    )

    said = run("09", capsys)
    assert "a lawam on another process: 16 actions at 80 Hz" in said
    assert "24 steps" in said
    assert "watch it at http://127.0.0.1:" in said
    assert "the page saw " in said
    assert "the server stopped" in said
