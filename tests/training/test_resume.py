"""A run that is killed, wherever it stands, and resumed ends with the weights of the run that was not."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toy_training import train_until_killed

PRELOADED = ["toy_training", "wamkit.training.loop", "accelerate", "accelerate.utils"]
STATE_FILES = ("optimizer_state.safetensors", "rng_state.safetensors", "live_parameters.safetensors")


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.BaseContext:
    """Starts processes from a server that has torch loaded, so that each costs a fork and not four seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _start(context, output_dir: Path, *, resume: bool, kill_at: int | None = None, pause: float = 0.0):
    process = context.Process(target=train_until_killed, args=(str(output_dir), resume, kill_at, pause))
    process.start()
    return process


def _outcome(output_dir: Path) -> dict[str, bytes]:
    last = (output_dir / "checkpoints" / "last").resolve()
    assert last.name == "000060"
    files = [last / "pretrained_model" / "model.safetensors"]
    files += [path for name in STATE_FILES if (path := last / "training_state" / name).exists()]
    return {f"{path.name}:{name}": t.numpy().tobytes() for path in files for name, t in load_file(path).items()}


@pytest.fixture(scope="module")
def uninterrupted(context, tmp_path_factory) -> dict[str, bytes]:
    output_dir = tmp_path_factory.mktemp("whole") / "run"
    process = _start(context, output_dir, resume=False)
    process.join(60)
    assert process.exitcode == 0
    return _outcome(output_dir)


def _differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_killed_at_random_moments(context, uninterrupted, tmp_path):
    """The clock decides: five kills in one run, in steps, logs and checkpoints alike."""
    moments, kills = random.Random(0), 0
    while kills < 5:
        process = _start(context, tmp_path / "run", resume=kills > 0, pause=0.01)
        process.join(0.4 + 0.8 * moments.random())
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 2, "the machine outran the test: lengthen the pause"
    process = _start(context, tmp_path / "run", resume=True)
    process.join(60)
    assert process.exitcode == 0
    assert _differing(uninterrupted, _outcome(tmp_path / "run")) == []


def _deadly_moments() -> Iterator[int]:
    """Calls at which to die: all through the first two checkpoints, then here and there in the rest of the run."""
    yield from range(0, 60, 7)
    yield from range(60, 240, 41)


def test_killed_while_it_writes_a_checkpoint(context, uninterrupted, tmp_path):
    died = 0
    for moment in _deadly_moments():
        output_dir = tmp_path / str(moment)
        process = _start(context, output_dir, resume=False, kill_at=moment)
        process.join(60)
        died += process.exitcode == -signal.SIGKILL
        process = _start(context, output_dir, resume=True)
        process.join(60)
        assert process.exitcode == 0
        assert _differing(uninterrupted, _outcome(output_dir)) == [], moment
        assert not [path for path in (output_dir / "checkpoints").iterdir() if path.name.startswith(".")]
    assert died >= 10


def test_killed_again_and_again_at_the_same_call(context, uninterrupted, tmp_path):
    """Each life gets one checkpoint further and dies while writing the next."""
    for life in range(40):
        process = _start(context, tmp_path / "run", resume=life > 0, kill_at=45)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 2 < life < 39
    assert _differing(uninterrupted, _outcome(tmp_path / "run")) == []


def test_the_log_of_a_killed_run_reads_like_that_of_a_whole_one(context, tmp_path):
    for name, kill_at in (("whole", None), ("killed", 130)):
        _start(context, tmp_path / name, resume=False, kill_at=kill_at).join(60)
        _start(context, tmp_path / name, resume=True).join(60)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert steps[0] == steps[1]
