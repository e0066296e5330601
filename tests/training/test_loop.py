"""The loop: stages in order, frozen parts, accumulation, averages, logs, and every way to stop early."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import ToyConfig, ToyModel, toy_config, toy_data, toy_model

from wamkit.errors import WamkitError
from wamkit.training import checkpoint, state
from wamkit.training.config import StartingPolicy
from wamkit.training.errors import BrokenDataError, DiskFullError, NonFiniteLossError, ResumeError, TrainingError
from wamkit.training.loop import train

run = partial(train, build_model=toy_model, build_data=toy_data)


def records(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "train_log.jsonl").read_text().splitlines()]


def weights(output_dir: Path, step: str = "last") -> dict[str, torch.Tensor]:
    return load_file(output_dir / "checkpoints" / step / "pretrained_model" / "model.safetensors")


def test_trains_both_stages_and_writes_lerobots_layout(output_dir):
    policy = run(toy_config(output_dir))
    assert policy == output_dir / "checkpoints" / "last" / "pretrained_model"
    assert policy.resolve().parent.name == "000060"
    names = {path.name for path in policy.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "train_config.json",
        "README.md",
    }
    described = json.loads((policy / "config.json").read_text())
    assert described["type"] == "toy"
    assert described["stage"] == "policy"
    assert described["width"] == 16
    assert described["contract"] == {"cameras": {}}
    inner = {path.name for path in (policy.parent / "training_state").iterdir()}
    assert {
        "optimizer_state.safetensors",
        "scheduler_state.json",
        "rng_state.safetensors",
        "training_step.json",
    } <= inner
    # the newest two, and the end of each stage
    assert sorted(p.name for p in checkpoint.finished_checkpoints(output_dir)) == ["000030", "000058", "000060"]


def test_each_stage_lowers_its_loss_and_leaves_frozen_parts_alone(output_dir):
    run(toy_config(output_dir))
    log = [record for record in records(output_dir) if "loss" in record]
    for stage in ("world", "policy"):
        losses = [record["loss"] for record in log if record["stage"] == stage]
        assert losses[-1] < losses[0]
    first, last = weights(output_dir, "000030"), weights(output_dir)
    for name in first:
        assert torch.equal(first[name], last[name]) is not name.startswith("policy."), name


def test_log_holds_what_one_needs_to_see(output_dir):
    run(toy_config(output_dir, validate_every=20))
    log = records(output_dir)
    train_records = [record for record in log if "loss" in record]
    assert [record["step"] for record in train_records] == list(range(5, 61, 5))
    wanted = {
        "stage",
        "stage_step",
        "reconstruction",
        "size",
        "lr",
        "grad_norm",
        "samples_per_s",
        "data_wait_ratio",
        "rss_mb",
    }
    assert wanted <= train_records[0].keys()
    assert train_records[0]["rss_mb"] > 10
    assert 0 <= train_records[0]["data_wait_ratio"] <= 1
    held_out = [(record["stage"], record["stage_step"]) for record in log if "validation/loss" in record]
    assert held_out == [("world", 20), ("world", 30), ("policy", 20), ("policy", 30)]


def test_validation_changes_no_bit_of_the_training(tmp_path):
    run(toy_config(tmp_path / "a", validate_every=3, log_every=4))
    run(toy_config(tmp_path / "b", validate_every=0, log_every=50, save_every=100))
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_average_is_what_a_stage_leaves_behind(output_dir):
    run(toy_config(output_dir))
    end = output_dir / "checkpoints" / "000030"
    average = load_file(end / "pretrained_model" / "model.safetensors")
    live = load_file(end / "training_state" / "live_parameters.safetensors")
    assert set(live) == {name for name in average if name.startswith(("encoder.", "head."))}
    assert not torch.equal(average["head.weight"], live["head.weight"])
    assert torch.equal(weights(output_dir)["head.weight"], average["head.weight"])


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    quiet = ToyConfig(noisy=False)
    whole = toy_config(tmp_path / "a", model_config=quiet, selected_stages=("world",))
    stage = dataclasses.replace(whole.stages[0], steps=5, warmup_steps=0, batch_size=16, accumulate=1)
    parts = dataclasses.replace(stage, batch_size=4, accumulate=4)
    run(dataclasses.replace(whole, stages=(stage,)))
    run(dataclasses.replace(whole, stages=(parts,), output_dir=str(tmp_path / "b")))
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_a_stage_alone_starts_from_a_checkpoint(tmp_path):
    run(toy_config(tmp_path / "both"))
    world = str(tmp_path / "both" / "checkpoints" / "000030" / "pretrained_model")
    alone = toy_config(tmp_path / "alone", selected_stages=("policy",), policy=StartingPolicy(path=world))
    run(alone)
    one, other = weights(tmp_path / "both"), weights(tmp_path / "alone")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "alone" / "checkpoints" / "last").resolve().name == "000030"


def test_a_later_stage_alone_needs_a_checkpoint(output_dir):
    with pytest.raises(TrainingError, match=r"builds on 'world'.*--policy\.path"):
        run(toy_config(output_dir, selected_stages=("policy",)))


def test_weights_of_another_shape_are_refused(tmp_path):
    run(toy_config(tmp_path / "a", selected_stages=("world",)))
    start = StartingPolicy(path=str(tmp_path / "a" / "checkpoints" / "last" / "pretrained_model"))
    with pytest.raises(ResumeError, match="does not fit this model's config"):
        run(toy_config(tmp_path / "b", model_config=ToyConfig(width=8), policy=start))
    with pytest.raises(ResumeError, match="is no checkpoint"):
        run(toy_config(tmp_path / "c", policy=StartingPolicy(path=str(tmp_path))))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """By what it says it is, before its weights are looked at: two models may have weights of the same names."""
    run(toy_config(tmp_path / "a", selected_stages=("world",)))
    policy = tmp_path / "a" / "checkpoints" / "last" / "pretrained_model"
    described = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(described | {"type": "light_wam"}))
    start = StartingPolicy(path=str(policy))
    with pytest.raises(ResumeError, match="holds a 'light_wam', this run trains a 'toy'; choose another checkpoint"):
        run(toy_config(tmp_path / "b", policy=start))
    (policy / "config.json").write_text("{")
    with pytest.raises(ResumeError, match="config.json cannot be read"):
        run(toy_config(tmp_path / "b", policy=start))
    assert not (tmp_path / "b").exists()


def test_a_second_run_in_the_same_place_is_refused(output_dir):
    run(toy_config(output_dir))
    with pytest.raises(TrainingError, match=r"already holds a run.*--resume"):
        run(toy_config(output_dir))


def test_resuming_a_finished_run_changes_nothing(output_dir):
    run(toy_config(output_dir))
    before = (output_dir / "checkpoints" / "000060" / "pretrained_model" / "model.safetensors").stat().st_mtime_ns
    run(toy_config(output_dir, resume=True))
    after = (output_dir / "checkpoints" / "000060" / "pretrained_model" / "model.safetensors").stat().st_mtime_ns
    assert before == after


def test_resuming_with_other_settings_is_refused(output_dir):
    run(toy_config(output_dir))
    with pytest.raises(ResumeError, match=r"seed \(was 0, now 1\)"):
        run(toy_config(output_dir, resume=True, seed=1))


def test_resuming_with_other_recordings_is_refused(output_dir):
    stopped = partial(toy_data, poison={"policy": {12: ValueError("gone")}})
    with pytest.raises(BrokenDataError):
        train(toy_config(output_dir), build_model=toy_model, build_data=stopped)

    def other(*args, **kwargs):
        return dataclasses.replace(toy_data(*args, **kwargs), fingerprint="another")

    with pytest.raises(ResumeError, match="fingerprints differ"):
        train(toy_config(output_dir, resume=True), build_model=toy_model, build_data=other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_what_one_needs(output_dir, value):
    poisoned = partial(toy_data, poison={"policy": {11: value}})
    with pytest.raises(NonFiniteLossError) as stopped:
        train(toy_config(output_dir), build_model=toy_model, build_data=poisoned)
    message = str(stopped.value)
    assert "'policy' stopped at step 11" in message
    assert "loss term action" in message
    assert "episodes 8 to 9" in message  # draws 88 to 95
    assert "000037" in message
    assert all(tensor.isfinite().all() for tensor in weights(output_dir).values())
    assert not list((output_dir / "checkpoints").glob(".unfinished*"))


def test_a_broken_episode_stops_the_run_and_it_goes_on_when_mended(output_dir, tmp_path):
    run(toy_config(tmp_path / "whole"))
    broken = partial(toy_data, poison={"world": {20: OSError("episode 12 has no video")}})
    with pytest.raises(BrokenDataError, match=r"step 10.*episode 12 has no video.*episodes 16 to 16.*--resume"):
        train(toy_config(output_dir), build_model=toy_model, build_data=broken)
    run(toy_config(output_dir, resume=True))
    one, other = weights(tmp_path / "whole"), weights(output_dir)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(output_dir, monkeypatch):
    saved = state.save_weights

    def full(tensors, path, *rest):
        if "000014" in str(path) and path.name == "optimizer_state.safetensors":
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(tensors, path, *rest)

    monkeypatch.setattr(state, "save_weights", full)
    with pytest.raises(DiskFullError, match=r"is full: the checkpoint at step 14.*intact.*000007") as stopped:
        run(toy_config(output_dir))
    assert isinstance(stopped.value, WamkitError)
    assert [path.name for path in (output_dir / "checkpoints").iterdir() if path.name != "last"] == ["000007"]
    assert checkpoint.last_checkpoint(output_dir).name == "000007"
    monkeypatch.undo()
    run(toy_config(output_dir, resume=True))
    assert checkpoint.last_checkpoint(output_dir).name == "000060"


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for one and a half checkpoints; its size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0

    if not mount("size=130k"):
        pytest.skip("this user may not mount a small disk; the test above stands in for it")
    yield folder, lambda: mount("remount,size=16m")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, tmp_path):
    folder, enlarge = small_disk
    with pytest.raises(DiskFullError, match=r"is full: the checkpoint at step 14.*intact.*000007"):
        run(toy_config(folder / "run"))
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir() if path.name != "last"] == ["000007"]
    assert enlarge()
    run(toy_config(folder / "run", resume=True))
    run(toy_config(tmp_path / "whole"))
    one, other = weights(tmp_path / "whole"), weights(folder / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_disk_under_the_log_is_said_plainly(output_dir, monkeypatch):
    from wamkit.training import log

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.json, "dumps", full)
    with pytest.raises(DiskFullError, match="training log could not be written"):
        run(toy_config(output_dir))


def test_bf16_autocast_runs_and_keeps_weights_in_fp32(output_dir):
    run(toy_config(output_dir, precision="bf16", selected_stages=("world",)))
    assert all(tensor.dtype == torch.float32 for tensor in weights(output_dir).values())


def test_tensorboard_gets_the_scalars(output_dir):
    run(toy_config(output_dir, logger="tensorboard", selected_stages=("world",)))
    assert list((output_dir / "tensorboard").glob("events*"))


def test_progress_is_reported(output_dir):
    calls = []
    train(
        toy_config(output_dir),
        build_model=toy_model,
        build_data=toy_data,
        progress=lambda done, total, note="": calls.append((done, total, note)),
    )
    assert calls[-1][:2] == (60, 60)
    assert "policy 30/30" in calls[-1][2]


def test_a_trained_parameter_outside_every_group_is_refused(output_dir):
    class Forgetful(ToyModel):
        def parameter_groups(self, stage):
            return super().parameter_groups(stage)[:1]

    with pytest.raises(TrainingError, match="misses trained parameters"):
        train(toy_config(output_dir), build_model=lambda config: Forgetful(ToyConfig()), build_data=toy_data)
