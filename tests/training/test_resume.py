"""A run that is killed, wherever it stands, and resumed ends with the weights of the run that was not."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toy_training import SHORT, train_until_killed

STATE_FILES = ("optimizer_state.safetensors", "rng_state.safetensors", "live_parameters.safetensors")


def _start(processes, output_dir: Path, *, resume: bool, kill_at: int | None = None, pause: float = 0.0):
    process = processes.Process(target=train_until_killed, args=(str(output_dir), resume, kill_at, pause))
    process.start()
    return process


def _outcome(output_dir: Path) -> dict[str, bytes]:
    last = (output_dir / "checkpoints" / "last").resolve()
    assert last.name == f"{SHORT * 2:06d}"
    files = [last / "pretrained_model" / "model.safetensors"]
    files += [path for name in STATE_FILES if (path := last / "training_state" / name).exists()]
    return {f"{path.name}:{name}": t.numpy().tobytes() for path in files for name, t in load_file(path).items()}


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory) -> dict[str, bytes]:
    output_dir = tmp_path_factory.mktemp("whole") / "run"
    process = _start(processes, output_dir, resume=False)
    process.join(60)
    assert process.exitcode == 0
    return _outcome(output_dir)


def _differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_killed_at_random_moments(processes, uninterrupted, tmp_path):
    """The clock decides when, in steps, logs and checkpoints alike; a run that got through is followed by another."""
    moments, kills, runs = random.Random(0), 0, 0
    while kills < 4 or process.exitcode != 0:
        output_dir = tmp_path / str(runs)
        process = _start(processes, output_dir, resume=output_dir.exists(), pause=0.03)
        process.join(0.2 + 1.0 * moments.random() if kills < 4 else 60)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.exitcode == 0
            assert _differing(uninterrupted, _outcome(output_dir)) == []
            runs += 1


def _deadly_moments() -> Iterator[int]:
    """Calls at which to die: all through the first two checkpoints, then here and there in the rest of the run."""
    yield from range(0, 60, 4)
    yield from range(60, 200, 28)


def test_killed_while_it_writes_a_checkpoint(processes, uninterrupted, tmp_path):
    died = 0
    for moment in _deadly_moments():
        output_dir = tmp_path / str(moment)
        process = _start(processes, output_dir, resume=False, kill_at=moment)
        process.join(60)
        died += process.exitcode == -signal.SIGKILL
        process = _start(processes, output_dir, resume=True)
        process.join(60)
        assert process.exitcode == 0
        assert _differing(uninterrupted, _outcome(output_dir)) == [], moment
        assert not [path for path in (output_dir / "checkpoints").iterdir() if path.name.startswith(".")]
    assert died >= 12


def test_killed_again_and_again_at_the_same_call(processes, uninterrupted, tmp_path):
    """Each life gets a checkpoint or two further and dies while writing the next."""
    for life in range(20):
        process = _start(processes, tmp_path / "run", resume=life > 0, kill_at=50)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 2 <= life < 19
    assert _differing(uninterrupted, _outcome(tmp_path / "run")) == []


def test_the_log_of_a_killed_run_reads_like_that_of_a_whole_one(processes, tmp_path):
    for name, kill_at in (("whole", None), ("killed", 90)):
        _start(processes, tmp_path / name, resume=False, kill_at=kill_at).join(60)
        _start(processes, tmp_path / name, resume=True).join(60)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert steps[0] == steps[1]
