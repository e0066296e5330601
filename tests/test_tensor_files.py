"""A file of tensors that was cut short is one line that says what to do, wherever a verb meets it."""

from __future__ import annotations

import pytest
import torch
from micro_policy import micro_policy, save
from safetensors.torch import save_file

from wamkit.cli import main
from wamkit.errors import WamkitError
from wamkit.inference.policy import load
from wamkit.tensor_files import read_metadata, read_tensors


class OddError(WamkitError):
    pass


def cut(path, share: float = 0.6):
    """Leave only the first part of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


def said_by(arguments, capsys) -> str:
    """The one line that a verb ends with."""
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert "not foreseen" not in said
    return said


def test_a_whole_file_is_read_with_what_stands_beside_the_tensors(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    save_file({"a": tensor}, tmp_path / "a.safetensors", metadata={"format": "pt", "b": "a"})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors", OddError, "mend it")["a"], tensor)
    assert read_metadata(tmp_path / "a.safetensors", OddError, "mend it") == {"format": "pt", "b": "a"}


@pytest.mark.parametrize("read", [read_tensors, read_metadata])
@pytest.mark.parametrize("damage", ["missing", "empty", "head", "tail", "text"])
def test_what_cannot_be_read_is_the_error_of_the_place(tmp_path, read, damage):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(400)}, path)
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("<html>not found</html>" * 100)
    else:
        cut(path, {"empty": 0.0, "head": 0.02, "tail": 0.9}[damage])
    with pytest.raises(OddError, match=r"a\.safetensors cannot be read \((?s:.)*\): mend it$"):
        read(path, OddError, "mend it")


@pytest.mark.parametrize(
    ("model", "file"),
    [
        *((model, "model.safetensors") for model in ("lawam", "fast_wam", "lingbot_va")),
        *((model, "published.pt") for model in ("lawam", "light_wam", "fast_wam")),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_converting_weights_that_are_cut_short(tmp_path, capsys, model, file, share):
    path, tensors = tmp_path / file, {"mot": {"policy_backend.a": torch.zeros(400)}}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors["mot"], path)
    cut(path, share)
    said = said_by(["convert", model, str(path), str(tmp_path / "out")], capsys)
    assert f"{file} cannot be read" in said
    assert "copy the checkpoint again" in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_whose_weights_are_cut_short_fits_nothing(tmp_path, capsys):
    """Found by the check before any run, from the head of the file alone, and by loading."""
    checkpoint = save(micro_policy(), tmp_path / "policy")
    cut(checkpoint / "model.safetensors")
    said = said_by(["check", "--policy.path", str(checkpoint), "--dataset.root", str(tmp_path)], capsys)
    assert "model.safetensors cannot be read" in said
    with pytest.raises(WamkitError, match=r"model.safetensors cannot be read"):
        load(checkpoint, device="cpu")
