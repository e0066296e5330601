"""Two processes train to what one process trains to, under DDP and under FSDP2.

Stated tolerance: in fp32, after 20 steps of a toy, after 2 of each of LaWAM's stages and after 1 of every other model's
policy, weights agree to 1e-4 (relative) or 1e-5 (absolute). They are not equal to the bit: sums over the batch are
added up in another order.
"""

from __future__ import annotations

import shutil
import socket
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import STEPS, small_config, small_data, small_model
from toy_training import quiet_config, toy_data, toy_model, train_as_rank

from wamkit.training.errors import TrainingError
from wamkit.training.loop import train


def _launch(processes, output_dir: Path, strategy: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        processes.Process(target=train_as_rank, args=(rank, 2, port, str(output_dir), strategy)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(150)
        if rank.exitcode is None:
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("alone") / "run"
    train(quiet_config(output_dir), build_model=toy_model, build_data=toy_data)
    return output_dir


@pytest.fixture(scope="module")
def sharded(processes, tmp_path_factory) -> Path:
    """What two processes trained under FSDP2: a folder for each model."""
    output_dir = tmp_path_factory.mktemp("fsdp2")
    _launch(processes, output_dir, "fsdp2")
    return output_dir


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def together(request, processes, tmp_path_factory) -> Path:
    """The toy's run by two processes."""
    if request.param == "fsdp2":
        return request.getfixturevalue("sharded") / "toy"
    output_dir = tmp_path_factory.mktemp("ddp")
    _launch(processes, output_dir, "ddp")
    return output_dir / "toy"


def _assert_alike(one: Path, two: Path, step: int, file: str = "pretrained_model/model.safetensors") -> None:
    first, second = (load_file(run / "checkpoints" / f"{step:06d}" / file) for run in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            second[name], first[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"step {step}, {n}: {m}"
        )


def test_two_processes_match_one(alone, together):
    for step in (10, 16, 20):
        _assert_alike(alone, together, step)
        _assert_alike(alone, together, step, "training_state/optimizer_state.safetensors")


def test_a_run_goes_on_with_another_number_of_processes(alone, together, tmp_path):
    """Checkpoints are whole and draws are counted globally, so one process may take over from two."""
    begun = tmp_path / "run"
    shutil.copytree(together, begun, symlinks=True)
    link = begun / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000016")
    train(quiet_config(begun, resume=True), build_model=toy_model, build_data=toy_data)
    _assert_alike(alone, begun, 20)


@pytest.mark.parametrize("name", list(STEPS))
def test_every_model_trains_sharded_as_it_trains_whole(sharded, name, tmp_path):
    whole = tmp_path / "run"
    train(small_config(name, whole), build_model=small_model, build_data=small_data)
    for step in accumulate(STEPS[name].values()):  # where each stage ends
        _assert_alike(whole, sharded / name, step)
    start = small_model(small_config(name, whole)).state_dict()
    trained = load_file(whole / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    # Far more than the tolerance: what is compared has moved.
    assert sum(bool(((trained[key] - start[key]).abs() > 1e-4).any()) for key in trained) > 20


def test_a_batch_that_the_processes_cannot_share_is_refused():
    from wamkit.training.distributed import check_divisible

    with pytest.raises(TrainingError, match=r"'policy' has a global batch of 7.*use 6"):
        check_divisible({"world": 8, "policy": 7}, 2)
