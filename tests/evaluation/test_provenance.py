"""The record of a run: it changes with what matters and names no machine."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from wamkit.errors import WamkitError
from wamkit.evaluation import provenance


@dataclass(frozen=True)
class Config:
    steps: int = 10
    name: str = "tiny"


def test_record_is_json_and_names_no_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "outputs" / "pretrained_model"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"0123")
    record = provenance.collect(
        checkpoint=weights,
        config=Config(),
        seeds=(0, 1),
        arguments=[
            str(tmp_path / "bin" / "wam"),
            "eval",
            f"--policy.path={weights}",
            "--output_dir",
            "/elsewhere/secret/run7",
            "ws://robot-lab-3:8000/x",
        ],
        simulator={"renderer": "egl"},
    )
    text = json.dumps(record, allow_nan=False)
    assert str(tmp_path) not in text
    assert "secret" not in text
    assert "robot-lab-3" not in text
    assert platform.node() not in text.replace('"', " ").split()
    assert str(Path.home()) + "/" not in text
    assert getpass.getuser() not in record["command"]
    assert record["command"] == [
        "wam",
        "eval",
        "--policy.path=outputs/pretrained_model",
        "--output_dir",
        ".../run7",
        "ws://<host>:8000/x",
    ]
    assert record["checkpoint"]["path"] == "outputs/pretrained_model"
    assert set(record["checkpoint"]["files"]) == {"config.json", "model.safetensors"}
    assert record["versions"]["torch"]
    assert record["hardware"]["cores"] >= 1
    assert record["simulator"] == {"renderer": "egl"}


def test_sentences_survive_in_a_command():
    words = ["wam", "act", "--task", "open and/or close the 1/2 drawer"]
    assert provenance.command_line(words) == words


def test_checkpoint_hash_sees_weights_and_names(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"one")
    before = provenance.checkpoint_record(tmp_path)["sha256"]
    assert provenance.checkpoint_record(tmp_path)["sha256"] == before
    (tmp_path / "a.bin").write_bytes(b"two")
    changed = provenance.checkpoint_record(tmp_path)["sha256"]
    (tmp_path / "a.bin").rename(tmp_path / "b.bin")
    assert len({before, changed, provenance.checkpoint_record(tmp_path)["sha256"]}) == 3
    with pytest.raises(WamkitError, match="No checkpoint"):
        provenance.checkpoint_record(tmp_path / "missing")


def test_config_hash_ignores_order_and_sees_values():
    assert provenance.config_hash({"a": 1, "b": 2}) == provenance.config_hash({"b": 2, "a": 1})
    assert provenance.config_hash(Config()) != provenance.config_hash(Config(steps=11))


def test_code_record_with_and_without_git(tmp_path):
    (tmp_path / "module.py").write_text("x = 1\n")
    bare = provenance.code_record(tmp_path)
    assert bare["commit"] is None
    assert bare["dirty"] is None

    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            check=True,
            capture_output=True,
        )

    git("init")
    assert provenance.code_record(tmp_path)["commit"] is None  # in a repository, but not of it
    git("add", "module.py")
    git("commit", "-m", "first")
    clean = provenance.code_record(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    assert clean["tree_sha256"] == bare["tree_sha256"]
    (tmp_path / "module.py").write_text("x = 2\n")
    edited = provenance.code_record(tmp_path)
    assert edited["dirty"] is True
    assert edited["tree_sha256"] != clean["tree_sha256"]


def test_extra_may_not_overwrite():
    with pytest.raises(WamkitError, match="already records versions"):
        provenance.collect(versions={})
