"""A damaged JSON file is one line that says what to do, wherever a verb meets it."""

from __future__ import annotations

import json
import os

import pytest
import torch
from micro_policy import micro_policy, save
from safetensors.torch import save_file

from wamkit import json_files
from wamkit.cli import main
from wamkit.errors import WamkitError
from wamkit.json_files import read_json, read_json_lines, replace_text, write_json, write_json_lines

DAMAGED = ['{"type": "lawam", ', "[1, 2]", "\xff", ""]
"""Cut short, no object, not UTF-8 (it is written as Latin-1), and empty."""


class OddError(WamkitError):
    pass


@pytest.mark.parametrize("text", [*DAMAGED, None])
def test_what_cannot_be_read_is_the_error_of_the_place(tmp_path, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(OddError, match=r"a\.json cannot be read \(.*\): mend it$") as caught:
        read_json(path, OddError, "mend it")
    assert "\n" not in str(caught.value)


def test_lines_are_objects_and_the_damaged_one_is_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"task": "one\u2028line"}, {"task": "two"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    assert read_json_lines(path, OddError, "mend it") == rows
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    for may_be_cut in (True, False):
        with pytest.raises(OddError, match=r"Line 2 of .*a\.jsonl cannot be read \(.*\): mend it$"):
            read_json_lines(path, OddError, "mend it", may_be_cut=may_be_cut)
    path.write_text('{"a": 1}\n3\n')
    with pytest.raises(OddError, match=r"Line 2 .*no JSON object"):
        read_json_lines(path, OddError, "mend it", may_be_cut=True)


def test_half_a_line_that_a_kill_left_is_no_damage(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b": ')
    assert read_json_lines(path, OddError, "mend it", may_be_cut=True) == [{"a": 1}]
    with pytest.raises(OddError, match="Line 2"):
        read_json_lines(path, OddError, "mend it")
    path.write_text('{"a": 1}\n{"b": 2}')
    assert read_json_lines(path, OddError, "mend it", may_be_cut=True) == [{"a": 1}, {"b": 2}]


def test_what_was_written_comes_back(tmp_path):
    value = {"text": "ä \u2028", "number": 0.1, "list": [1, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", OddError, "") == value
    write_json_lines(tmp_path / "a.jsonl", [value, value])
    assert read_json_lines(tmp_path / "a.jsonl", OddError, "") == [value, value]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl"]


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, stage):
    path = tmp_path / "a.txt"
    replace_text(path, "old")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(json_files.os, stage, full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def said_by(arguments: list[str], capsys) -> str:
    """The one line that a verb ends with."""
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "not foreseen" not in said
    return said


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize(
    ("model", "name", "beside"),
    [
        ("lawam", "model.weight", "config.json"),  # ours, to be published
        ("lawam", "policy_backend.model.weight", "config.json"),  # published, in LeRobot's layout
        ("lingbot_va", None, "diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_converting_beside_a_damaged_description(tmp_path, capsys, text, model, name, beside):
    if name is not None:
        save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / beside).write_text(text, encoding="latin-1")
    said = said_by(["convert", model, str(tmp_path), str(tmp_path / "out")], capsys)
    assert f"{beside} cannot be read" in said
    assert "copy the checkpoint again" in said


@pytest.mark.parametrize("text", [*DAMAGED, None])
def test_imagining_with_a_damaged_record_of_training(tmp_path, capsys, text):
    checkpoint = save(micro_policy(), tmp_path / "policy")
    if text is not None:
        (checkpoint / "train_config.json").write_text(text, encoding="latin-1")
    arguments = ["--policy.path", str(checkpoint), "--dataset.root", str(tmp_path), "--output_dir", str(tmp_path)]
    said = said_by(["imagine", *arguments, "--device", "cpu"], capsys)
    assert "train_config.json cannot be read" in said
    assert "name a checkpoint that `wam train` wrote" in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("wamkit.json", text) for text in DAMAGED),
        *(("trials.jsonl", text + "\n") for text in DAMAGED if text),  # a line with an end is none that a kill cut
    ],
)
def test_resuming_a_recording_whose_notes_are_damaged(tmp_path, capsys, text, name):
    pytest.importorskip("metaworld")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / name).write_text(text, encoding="latin-1")
    said = said_by(["record", "--env.task", "reach-v3", "--output_dir", str(tmp_path), "--resume"], capsys)
    assert f"{name} cannot be read" in said
    assert "restore the file" in said
