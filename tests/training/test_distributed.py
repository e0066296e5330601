"""Two processes train to what one process trains to, under DDP and under FSDP2.

Stated tolerance: after 20 steps of AdamW in fp32, weights agree to 1e-4 (relative) or 1e-5 (absolute). They are not
equal to the bit: sums over the batch are added up in another order.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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
        rank.join(90)
        if rank.exitcode is None:
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("alone") / "run"
    train(quiet_config(output_dir), build_model=toy_model, build_data=toy_data)
    return output_dir


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_match_one(processes, alone, tmp_path, strategy):
    together = tmp_path / "run"
    _launch(processes, together, strategy)
    for step in ("000010", "000016", "000020"):
        for file in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
            one = load_file(alone / "checkpoints" / step / file)
            two = load_file(together / "checkpoints" / step / file)
            assert one.keys() == two.keys()
            for name in one:
                torch.testing.assert_close(
                    two[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes(processes, alone, tmp_path, strategy):
    """Checkpoints are whole and draws are counted globally, so one process may take over from two."""
    together = tmp_path / "run"
    _launch(processes, together, strategy)
    link = together / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000016")
    train(quiet_config(together, resume=True), build_model=toy_model, build_data=toy_data)
    one = load_file(alone / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    two = load_file(together / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_batch_that_the_processes_cannot_share_is_refused():
    from wamkit.training.distributed import check_divisible

    with pytest.raises(TrainingError, match=r"'policy' has a global batch of 7.*use 6"):
        check_divisible({"world": 8, "policy": 7}, 2)
