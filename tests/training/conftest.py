"""What the tests of this folder share; they, and the processes that they start, import the toys beside them."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where the machine has it: these tests write hundreds of checkpoints, each flushed to the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="wamkit-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.BaseContext:
    """Starts processes from a server that has torch loaded, so that each costs a fork and not several seconds."""
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo is what an optimiser's first step imports.
    of_training = ["toy_training", "wamkit.training.loop", "accelerate", "accelerate.utils", "torch._dynamo"]
    of_models = [
        "transformers.models.qwen3_vl.modeling_qwen3_vl",
        "diffusers.models.transformers.transformer_wan",
        "peft",
    ]
    context.set_forkserver_preload([*of_training, "numpy.random", *of_models])
    return context


@pytest.fixture(scope="session")
def disc_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes at 10 Hz with one camera, ``front``, and two instructions."""
    from wamkit.data.synthetic import make_synthetic_dataset

    root = tmp_path_factory.mktemp("disc") / "data"
    make_synthetic_dataset(root, episodes=3, length=14, fps=10, task=("push the disc", "pull it"))
    return root
