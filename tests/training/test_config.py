"""Configs travel as JSON, refuse what they do not know, and say whether a run may be resumed under them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from toy_training import ToyConfig, toy_config

from wamkit.configuration import ConfigError
from wamkit.training.config import StageConfig, TrainConfig, check_resumable
from wamkit.training.errors import ResumeError, TrainingError


def test_round_trip_through_json(tmp_path):
    config = toy_config(tmp_path, model_config=ToyConfig(width=8), selected_stages=("world",))
    stored = json.loads(json.dumps(config.to_dict()))
    assert TrainConfig.from_dict(stored, ToyConfig) == config


def test_unknown_key_gets_a_suggestion(tmp_path):
    stored = toy_config(tmp_path).to_dict()
    stored["stages"][0]["learnin_rate"] = 1.0
    with pytest.raises(ConfigError, match=r"learnin_rate.*Did you mean 'learning_rate'"):
        TrainConfig.from_dict(stored)


def test_unknown_stage_gets_a_suggestion(tmp_path):
    with pytest.raises(TrainingError, match=r"no stage 'polcy'.*'policy'"):
        toy_config(tmp_path, selected_stages=("polcy",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"warmup_steps": 31}, r"warmup_steps \(31\) exceed steps \(30\)"),
    ],
)
def test_impossible_stages_are_refused(tmp_path, change, message):
    stage = toy_config(tmp_path).stages[1]
    with pytest.raises(TrainingError, match=message):
        dataclasses.replace(stage, **change)


def test_a_stage_named_twice_is_refused(tmp_path):
    config = toy_config(tmp_path)
    with pytest.raises(TrainingError, match="names a stage twice"):
        dataclasses.replace(config, stages=(config.stages[0], config.stages[0]))


def test_resume_tells_what_differs(tmp_path):
    config = toy_config(tmp_path)
    stages = (dataclasses.replace(config.stages[0], learning_rate=0.5), config.stages[1])
    changed = dataclasses.replace(config, stages=stages)
    with pytest.raises(ResumeError, match=r"stages\[0\]\.learning_rate \(was 0\.01, now 0\.5\)"):
        check_resumable(config.to_dict(), changed.to_dict())


def test_resume_may_change_what_changes_no_bit(tmp_path):
    config = toy_config(tmp_path)
    dataset = dataclasses.replace(config.dataset, roots=("moved/here",), cache_dir="elsewhere")
    stored = dataclasses.replace(config, dataset=dataclasses.replace(dataset, roots=("there",), cache_dir=None))
    changed = dataclasses.replace(
        config, dataset=dataset, save_every=3, log_every=1, keep_last=9, workers=2, resume=True
    )
    check_resumable(stored.to_dict(), changed.to_dict())


def test_stage_defaults_live_in_one_place():
    names = {field.name for field in dataclasses.fields(StageConfig)}
    assert {"betas", "eps", "weight_decay", "clip_norm", "ema_decay", "accumulate", "schedule", "warmup_steps"} <= names
