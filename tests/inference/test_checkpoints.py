"""Folders that are no checkpoint, or no longer one, are errors that say what to do."""

from __future__ import annotations

import json

import pytest

from wamkit.cli import main
from wamkit.errors import WamkitError
from wamkit.inference.checkpoints import read_config
from wamkit.inference.errors import PolicyError
from wamkit.inference.policy import load


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type": "lawam", ', "config.json cannot be read .*name another"),
        ("\xff", "config.json cannot be read"),
        ("[1, 2]", "holds no JSON object"),
        ('{"stage": "policy"}', "does not say which model it is"),
    ],
)
def test_a_broken_description_is_said(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    for read in (read_config, load):
        with pytest.raises(PolicyError, match=said):
            read(tmp_path)


def test_a_model_that_does_not_exist_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"type": "lawan"}))
    with pytest.raises(WamkitError, match="Did you mean 'lawam'"):
        load(tmp_path)


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main(["check", "--policy.path", str(tmp_path), "--dataset.root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "config.json cannot be read" in said
    assert "not foreseen" not in said
