"""From a recorded data set to a trained LaWAM: every stage on real stores, windows and normalisation."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from micro_lawam import LAWAM
from safetensors.torch import load_file
from toy_training import train_until_step

from wamkit.data.embodiments import MAX_EMBODIMENTS
from wamkit.data.normalize import ACTION, Normalizer
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import WindowSpec
from wamkit.errors import WamkitError
from wamkit.models.lawam.config import LaWAMConfig
from wamkit.training.config import DatasetConfig, StageConfig, StartingPolicy, TrainConfig
from wamkit.training.errors import ResumeError, TrainingError
from wamkit.training.loop import train
from wamkit.training.stages import build_model, holdout_split


def small_lawam() -> LaWAMConfig:
    """For any robot, since recordings may be of one without a name; with dropout, which resuming must bring back."""
    return dataclasses.replace(
        LAWAM,
        latent_action=dataclasses.replace(LAWAM.latent_action, embodiments=MAX_EMBODIMENTS),
        action=dataclasses.replace(LAWAM.action, embodiments=MAX_EMBODIMENTS, dropout=0.1),
        cameras=("front",),
    )


def config(root: Path, output_dir: Path, **changes) -> TrainConfig:
    model = small_lawam()
    here, horizon = (0.0,), (0.0, model.horizon_s)
    common = {"batch_size": 8, "learning_rate": 1e-3, "steps": 4}
    seen = {"cameras": model.cameras, "resolution": model.encoder.resolution}
    settings = {
        "name": "synthetic",
        "model": "lawam",
        "model_config": model,
        "dataset": DatasetConfig(roots=(str(root),), holdout_episodes=1),
        "stages": (
            StageConfig(name="encoder", window=WindowSpec(frame_offsets_s=here, **seen), **common),
            StageConfig(
                name="latent_action", window=WindowSpec(frame_offsets_s=horizon, feature_views=2, **seen), **common
            ),
            StageConfig(
                name="policy",
                window=WindowSpec(
                    frame_offsets_s=horizon, chunk_s=model.horizon_s, max_actions=8, feature_views=1, **seen
                ),
                ema_decay=0.9,
                **common,
            ),
        ),
        "output_dir": str(output_dir),
        "device": "cpu",
        "precision": "fp32",
        "save_every": 3,
        "log_every": 2,
        "validation_batches": 1,
        "logger": "none",
    }
    return TrainConfig(**(settings | changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "synthetic"
    make_synthetic_dataset(folder, episodes=4, length=16)
    return folder


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    return train(config(root, tmp_path_factory.mktemp("trained") / "run"))


def test_trains_every_stage_on_recordings(run):
    records = [json.loads(line) for line in (run.parents[2] / "train_log.jsonl").read_text().splitlines()]
    for number in ("loss", "validation/loss"):
        assert {record["stage"] for record in records if number in record} == {"encoder", "latent_action", "policy"}
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())


def test_the_checkpoint_is_all_one_needs(run, root):
    described = json.loads((run / "config.json").read_text())
    assert described["type"] == "lawam"
    assert described["stage"] == "policy"
    assert list(described["contract"]["cameras"])
    normalizer = Normalizer.load(run)
    actions = torch.randn(3, 2)
    there = normalizer.normalize(ACTION, actions, "custom")
    torch.testing.assert_close(normalizer.unnormalize(ACTION, there, "custom"), actions)
    stored = json.loads((run / "train_config.json").read_text())
    assert TrainConfig.from_dict(stored).model_config == small_lawam()
    assert root.name in (run / "README.md").read_text()


def test_stages_that_share_the_encoder_share_the_feature_store(run):
    folders = [path.name for path in (run.parents[2] / "cache").iterdir() if path.is_dir()]
    assert len([name for name in folders if name.startswith("features-front")]) == 1
    assert len([name for name in folders if name.startswith("frames-front")]) == 1


def test_only_the_cameras_that_a_stage_reads_are_encoded(tmp_path):
    """The window names two cameras and the recording has three; the world model reads the primary view's features."""
    from wamkit.training.stages import build_model, build_stage_data

    root = tmp_path / "recorded"
    make_synthetic_dataset(root, episodes=2, length=10, cameras=("left", "front", "wrist"))
    model_config = dataclasses.replace(small_lawam(), cameras=("front", "wrist"))
    run = config(root, tmp_path / "run", model_config=model_config)
    stages = tuple(
        dataclasses.replace(stage, window=dataclasses.replace(stage.window, cameras=model_config.cameras))
        for stage in run.stages
    )
    run = dataclasses.replace(run, stages=stages)
    data = build_stage_data(run, stages[1], build_model(run), rank=0, world_size=1)
    window = next(iter(data.loader))
    data.close()
    kinds = {"-".join(path.name.split("-")[:2]) for path in (tmp_path / "run" / "cache").iterdir() if path.is_dir()}
    assert kinds == {"frames-front", "frames-wrist", "features-front"}
    assert set(window.frames) == {"front", "wrist"}
    assert set(window.features) == {"front"}
    assert window.features["front"].abs().sum() > 0


def test_recordings_with_an_instruction_that_cannot_be_read_are_refused_before_anything_is_decoded(tmp_path):
    root = tmp_path / "recorded"
    make_synthetic_dataset(root, episodes=2, length=10, task=("push the disc", "push the disc " * 9))
    with pytest.raises(TrainingError, match=r"recorded: the instruction 'push the disc push.*shorten it"):
        train(config(root, tmp_path / "run"))
    assert not (tmp_path / "run" / "cache").exists()


def test_a_killed_run_on_recordings_resumes_exactly(processes, run, root, tmp_path):
    """In the middle of the last stage: its third step was done and not saved, dropout and the average are at work."""
    whole = config(root, tmp_path / "run", save_every=2)
    process = processes.Process(target=train_until_step, args=(whole, 11))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    link = tmp_path / "run" / "checkpoints" / "last"
    assert link.resolve().name == "000010"
    train(dataclasses.replace(whole, resume=True, workers=0))
    assert link.resolve().name == "000012"
    one, two = load_file(run / "model.safetensors"), load_file(link / "pretrained_model" / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_stage_alone_takes_statistics_from_its_policy(run, root, tmp_path):
    start = StartingPolicy(path=str(run))
    dataset = DatasetConfig(roots=(str(root),), statistics="policy")
    alone = train(config(root, tmp_path / "run", selected_stages=("policy",), policy=start, dataset=dataset))
    assert Normalizer.load(alone).statistics_hash() == Normalizer.load(run).statistics_hash()


def test_held_out_episodes_are_spread_evenly():
    train_on, held_out = holdout_split(75, 6)
    assert held_out == (6, 18, 31, 43, 56, 68)
    assert len(train_on) == 69
    assert not set(train_on) & set(held_out)
    assert holdout_split(3, 0) == ((0, 1, 2), ())
    with pytest.raises(TrainingError, match=r"lower dataset\.holdout_episodes"):
        holdout_split(3, 3)


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(TrainingError, match=r"--dataset\.roots"):
        train(config(root, tmp_path / "a", dataset=DatasetConfig()))
    with pytest.raises(TrainingError, match="weights holds 2 settings for 1 roots"):
        DatasetConfig(roots=(str(root),), weights=(1.0, 2.0))
    with pytest.raises(WamkitError, match="policy"):
        train(config(root, tmp_path / "b", dataset=DatasetConfig(roots=(str(root),), statistics="policy")))
    stages = config(root, tmp_path).stages
    features = dataclasses.replace(stages[0], window=dataclasses.replace(stages[0].window, feature_views=1))
    with pytest.raises(TrainingError, match="has none in that stage"):
        train(config(root, tmp_path / "c", stages=(features,)))


def test_other_recordings_are_not_resumed_on(run, root, tmp_path):
    make_synthetic_dataset(tmp_path / "other", episodes=4, length=16, seed=1)
    whole = config(root, tmp_path / "run", stages=config(root, tmp_path).stages[:1])
    train(whole)
    link = tmp_path / "run" / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000003")
    moved = dataclasses.replace(whole.dataset, roots=(str(tmp_path / "other"),))
    with pytest.raises(ResumeError, match="fingerprints differ"):
        train(dataclasses.replace(whole, resume=True, dataset=moved))


def test_a_broken_video_stops_a_later_stage_and_loses_nothing(root, tmp_path):
    copy = tmp_path / "recorded"
    shutil.copytree(root, copy)
    whole = config(copy, tmp_path / "run")
    larger = dataclasses.replace(whole.stages[1], window=dataclasses.replace(whole.stages[1].window, resolution=64))
    video = next(copy.rglob("*.mp4"))
    intact = video.read_bytes()
    train(dataclasses.replace(whole, stages=whole.stages[:1]))
    video.write_bytes(intact[: len(intact) // 2])
    start = StartingPolicy(path=str(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"))
    broken = dataclasses.replace(whole, stages=(larger,), policy=start, output_dir=str(tmp_path / "second"))
    with pytest.raises(WamkitError, match=r"recorded|\.mp4"):
        train(broken)
    assert not list((tmp_path / "second" / "cache").glob("frames*"))
    assert load_file(Path(start.path) / "model.safetensors")


def test_the_model_of_a_config(root, tmp_path):
    assert build_model(config(root, tmp_path)).config == small_lawam()
