"""Failed episodes show how things move and not what to do: which stages see them, and that it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_training import toy_config, toy_data, toy_model

from wamkit.data.lerobot import LeRobotSource
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import WindowSpec
from wamkit.training.config import DatasetConfig
from wamkit.training.errors import TrainingError
from wamkit.training.loop import train
from wamkit.training.stages import StageData, build_stage_data

SEEN = WindowSpec(frame_offsets_s=(0.0, 0.2), resolution=32)
ACTING = replace(SEEN, chunk_s=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six episodes, of which 1, 3 and 5 failed; with two held out, 1 and 4 are."""
    folder = tmp_path_factory.mktemp("failing") / "data"
    make_synthetic_dataset(folder, episodes=6, length=8, resolution=(32, 32))
    return folder


def built(root: Path, window: WindowSpec, **dataset) -> StageData:
    settings = {"roots": (str(root),), "holdout_episodes": 2, "cache_dir": str(root.parent / "cache")} | dataset
    config = toy_config(root.parent / "run", dataset=DatasetConfig(**settings), workers=0)
    stage = replace(config.stages[0], window=window, batch_size=32, accumulate=1)
    return build_stage_data(config, stage, toy_model(config), rank=0, world_size=1)


def episodes_seen(data: StageData, root: Path) -> set[int]:
    """Told by their states: no two rows of the recording are alike."""
    source = LeRobotSource(root)
    states = data.normalizer.normalize("observation.state", source.column("observation.state"), source.embodiment)
    window = next(iter(data.loader))
    distance = np.abs(np.asarray(states)[None] - window.state[:, 0].numpy()[:, None]).sum(-1)
    assert distance.min(axis=1).max() < 1e-5
    starts = np.array([episode.from_row for episode in source.episodes])
    return set((np.searchsorted(starts, distance.argmin(axis=1), side="right") - 1).tolist())


def test_a_stage_that_imitates_leaves_failures_out_and_says_so(root):
    data = built(root, ACTING)
    assert episodes_seen(data, root) == {0, 2}
    assert data.notes == (f"2 of 4 training episodes of {root} failed and are left out (dataset.failed_episodes).",)
    assert data.validation is not None  # episode 4 is held out and succeeded
    failed_are_held_out = built(root, ACTING, holdout_episodes=1)  # episode 3 alone
    assert failed_are_held_out.validation is None


def test_a_stage_that_learns_how_things_move_keeps_them(root):
    data = built(root, SEEN)
    assert episodes_seen(data, root) == {0, 2, 3, 5}
    assert data.notes == ()


def test_units_do_not_change_between_stages(root):
    hashes = {built(root, window).normalizer.statistics_hash() for window in (SEEN, ACTING)}
    assert len(hashes) == 1
    assert built(root, SEEN, failed_episodes="left_out").normalizer.statistics_hash() not in hashes


def test_the_config_has_the_last_word(root):
    assert episodes_seen(built(root, ACTING, failed_episodes="kept"), root) == {0, 2, 3, 5}
    everywhere = built(root, SEEN, failed_episodes="left_out")
    assert episodes_seen(everywhere, root) == {0, 2}
    assert "2 of 4" in everywhere.notes[0]


def test_a_recording_that_does_not_say_is_taken_whole(root, monkeypatch):
    told = LeRobotSource.episodes.func
    silent = property(lambda source: tuple(replace(episode, success=None) for episode in told(source)))
    monkeypatch.setattr(LeRobotSource, "episodes", silent)
    data = built(root, ACTING)
    assert episodes_seen(data, root) == {0, 2, 3, 5}
    assert data.notes == ()


def test_nothing_but_failures_is_refused(tmp_path, monkeypatch, root):
    told = LeRobotSource.episodes.func
    failed = property(lambda source: tuple(replace(episode, success=False) for episode in told(source)))
    monkeypatch.setattr(LeRobotSource, "episodes", failed)
    with pytest.raises(TrainingError, match=r"4 of 4 training episodes of .*--dataset\.failed_episodes kept"):
        built(root, ACTING)


def test_the_run_says_what_it_does_not_use(tmp_path, caplog):
    config = replace(toy_config(tmp_path / "run"), save_every=2)
    config = replace(config, stages=tuple(replace(stage, steps=4, warmup_steps=0) for stage in config.stages))

    def data(config, stage, model, **rest) -> StageData:
        notes = ("3 of 7 failed.",) if stage.name == "policy" else ()
        return replace(toy_data(config, stage, model, **rest), notes=notes)

    train(config, build_model=toy_model, build_data=data)
    assert [record.getMessage() for record in caplog.records] == ["Stage 'policy': 3 of 7 failed."]
    link = tmp_path / "run" / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000006")
    train(replace(config, resume=True), build_model=toy_model, build_data=data)
    assert len(caplog.records) == 2  # told at every start
    lines = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    noted = [line for line in lines if "note" in line]
    assert noted == [{"step": 4, "stage": "policy", "stage_step": 0, "note": "3 of 7 failed."}]
