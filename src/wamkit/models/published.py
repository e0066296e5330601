"""What the converters of published weights share: their error, links between names, foreign files, and our folders."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from wamkit.configuration import from_dict, to_dict
from wamkit.errors import WamkitError
from wamkit.json_files import read_json, write_json
from wamkit.tensor_files import read_metadata, read_tensors

WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_MEND = "copy the checkpoint again, or name another"


class ConversionError(WamkitError):
    """A checkpoint that does not fit the names or sizes asked for."""


@dataclass(frozen=True)
class Link:
    """Tensors of ours whose concatenation (first axis) is the concatenation of published ones."""

    ours: tuple[str, ...]
    published: tuple[str, ...]
    leading_axis: bool = False
    """The published tensor has a leading axis of one."""
    swapped: int | None = None
    """Axis whose two halves change places: scale and shift, or cosines and sines."""

    def to_ours(self, published: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Our tensors of this link."""
        whole = _joined(published, self.published)
        if self.leading_axis:
            whole = whole.squeeze(0)
        parts = [whole] if len(self.ours) == 1 else whole.split([shapes[name][0] for name in self.ours])
        return {name: self._swap(part) for name, part in zip(self.ours, parts, strict=True)}

    def to_published(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published tensors of this link."""
        whole = _joined(ours, self.ours)
        if self.leading_axis:
            whole = whole.unsqueeze(0)
        parts = [whole] if len(self.published) == 1 else whole.chunk(len(self.published))
        return {name: self._swap(part) for name, part in zip(self.published, parts, strict=True)}

    def _swap(self, tensor: Tensor) -> Tensor:
        if self.swapped is None:
            return tensor
        first, second = tensor.chunk(2, dim=self.swapped)
        return torch.cat([second, first], dim=self.swapped)


def _joined(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    parts = [tensors[name] for name in names]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def read_pickle(file: Path) -> Any:
    """What a ``.pt`` file holds, tensors in plain containers.

    Raises:
        ConversionError: it holds anything else; no code is run from it.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{file} is not plain tensors, and no code is run from it: save its state dicts"
        ) from error
    except (OSError, EOFError, RuntimeError) as error:  # torch's reader of zip files knows the last alone
        raise ConversionError(f"{file} cannot be read ({_first_line(error)}): {_MEND}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        ConversionError: it is damaged.
    """
    return read_tensors(file, ConversionError, _MEND)


def read_published_metadata(file: Path) -> dict[str, str]:
    """What a ``.safetensors`` file says beside its tensors.

    Raises:
        ConversionError: it is damaged.
    """
    return read_metadata(file, ConversionError, _MEND)


def write_pretrained(destination: Path, model: str, stage: str, config: Any, tensors: Mapping[str, Tensor]) -> Path:
    """Write a ``pretrained_model`` folder as training leaves one, but without a contract: nothing was recorded with it.

    Args:
        destination: the folder, made where it is not there.
        model: its name in the registry.
        stage: the stage whose checkpoint this is.
        config: the model's.
        tensors: contiguous, and none sharing memory with another.

    Returns:
        The weights file.
    """
    destination.mkdir(parents=True, exist_ok=True)
    described = {"type": model, "stage": stage, **to_dict(config)}
    write_json(destination / _CONFIG, described)
    save_file(dict(tensors), destination / WEIGHTS, metadata={"format": "pt"})
    return destination / WEIGHTS


def pretrained_folders(source: Path) -> tuple[Path, ...]:
    """Where a source given by name may keep its weights: itself, or as a training run leaves them."""
    return source, source / "pretrained_model", source / "checkpoints" / "last" / "pretrained_model"


def read_beside(file: Path) -> dict[str, Any]:
    """A JSON file beside published weights.

    Raises:
        ConversionError: it is damaged.
    """
    return read_json(file, ConversionError, _MEND)


def read_pretrained_config[C](folder: Path, model: str, config_class: type[C]) -> C:
    """The config in a ``pretrained_model`` folder of ours.

    Raises:
        ConversionError: there is none, it is damaged, or it is another model's.
    """
    file = folder / _CONFIG
    values = read_beside(file) if file.is_file() else {}
    if values.pop("type", None) != model:
        raise ConversionError(f"{folder} has no config.json of a {model}: name a pretrained_model folder of that model")
    return from_dict(config_class, {k: v for k, v in values.items() if k not in ("stage", "contract")}, _CONFIG)
