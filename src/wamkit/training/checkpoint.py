"""Checkpoints in LeRobot's layout, written so that a kill or a full disk at any moment loses nothing.

    checkpoints/<step:06d>/pretrained_model/  what one loads to act: weights, config, normaliser, contract
    checkpoints/<step:06d>/training_state/    what one needs to go on exactly as if nothing had happened
    checkpoints/last                          a link to the newest

A checkpoint is written into a hidden sibling, flushed to the disk and renamed: it exists whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from wamkit.json_files import read_json
from wamkit.tensor_files import read_metadata, read_tensors
from wamkit.training.errors import DiskFullError, ResumeError, is_disk_full

CHECKPOINTS = "checkpoints"
LAST = "last"
PRETRAINED_MODEL = "pretrained_model"
TRAINING_STATE = "training_state"
WEIGHTS = "model.safetensors"
LIVE_PARAMETERS = "live_parameters.safetensors"
OPTIMIZER_STATE = "optimizer_state.safetensors"
OPTIMIZER_GROUPS = "optimizer_param_groups.json"
SCHEDULER_STATE = "scheduler_state.json"
RNG_STATE = "rng_state.safetensors"
TRAINING_STEP = "training_step.json"
_UNFINISHED = ".unfinished-"


def checkpoint_name(step: int) -> str:
    """The folder's name for a number of steps over all stages."""
    return f"{step:06d}"


def write_checkpoint(output_dir: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write ``checkpoints/<step>`` through ``fill(folder)`` and point ``last`` at it.

    Raises:
        DiskFullError: there is no room; what was begun is removed and earlier checkpoints are as they were.
    """
    root = output_dir / CHECKPOINTS
    target = root / checkpoint_name(step)
    unfinished = root / f"{_UNFINISHED}{checkpoint_name(step)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output_dir)
        unfinished.mkdir()
        fill(unfinished)
        _flush_tree(unfinished)
        if target.exists():  # written by a run that was killed before it could point `last` here
            target.rename(root / f"{_UNFINISHED}replaced-{target.name}")
        unfinished.rename(target)
        _flush(root)
        point_last_at(target)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not is_disk_full(error):
            raise
        kept = last_checkpoint(output_dir)
        intact = f"The last checkpoint is intact: {kept}." if kept else "There is no earlier checkpoint."
        raise DiskFullError(
            f"The disk that holds {root} is full: the checkpoint at step {step} could not be written. {intact}"
            " Free some space, or lower keep_last, and run again with resume."
        ) from error
    remove_unfinished(output_dir)
    return target


def point_last_at(checkpoint: Path) -> None:
    """Let ``last`` point at ``checkpoint``, in one step: no moment without a valid link."""
    link = checkpoint.parent / LAST
    fresh = checkpoint.parent / f"{_UNFINISHED}last"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.name)
    os.replace(fresh, link)
    _flush(checkpoint.parent)


def last_checkpoint(output_dir: Path) -> Path | None:
    """What ``last`` points at; the newest whole checkpoint where the link is missing; None without any."""
    root = output_dir / CHECKPOINTS
    link = root / LAST
    if link.is_symlink() and link.resolve().is_dir():
        return link.resolve()
    whole = finished_checkpoints(output_dir)
    return whole[-1] if whole else None


def finished_checkpoints(output_dir: Path) -> list[Path]:
    """Every whole checkpoint, oldest first."""
    root = output_dir / CHECKPOINTS
    folders = [path for path in root.iterdir() if path.name.isdigit() and path.is_dir()] if root.is_dir() else []
    return sorted(folders, key=lambda path: int(path.name))


def remove_unfinished(output_dir: Path) -> None:
    """Remove what a killed run left half written."""
    root = output_dir / CHECKPOINTS
    for path in root.glob(f"{_UNFINISHED}*") if root.is_dir() else ():
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def prune(output_dir: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` checkpoints, sparing each stage's final one and that of ``last``."""
    last = last_checkpoint(output_dir)
    for checkpoint in finished_checkpoints(output_dir)[: -max(1, keep_last)]:
        if checkpoint == last or read_settings(checkpoint / TRAINING_STATE / TRAINING_STEP).get("stage_finished"):
            continue
        # Renamed first, so that a kill midway leaves no checkpoint that looks whole and is not.
        doomed = checkpoint.with_name(f"{_UNFINISHED}pruned-{checkpoint.name}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def save_weights(tensors: Mapping[str, Tensor], path: Path, shared: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors; ``shared`` (other name -> stored name) goes into the metadata."""
    stored = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={"format": "pt", **(shared or {})})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, shared tensors under each of their names.

    Raises:
        ResumeError: the file is missing or not whole.
    """
    tensors = read_tensors(path, ResumeError, "use an earlier checkpoint.")
    metadata = read_metadata(path, ResumeError, "use an earlier checkpoint.")
    return tensors | {name: tensors[kept] for name, kept in metadata.items() if name != "format" and kept in tensors}


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        ResumeError: it is missing or broken.
    """
    return read_json(path, ResumeError, "use an earlier checkpoint.")


def _flush_tree(folder: Path) -> None:
    for directory, _, files in os.walk(folder):
        for file in files:
            _flush(Path(directory) / file)
        _flush(Path(directory))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; none where it is missing."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []
