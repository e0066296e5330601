"""Fast-WAM's published checkpoints in wamkit's layout, and back: ``wam convert fast_wam SOURCE DESTINATION``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from wamkit.models.fast_wam.config import FastWAMConfig, preset
from wamkit.models.fast_wam.model import FastWAM
from wamkit.models.fast_wam.published_names import by_expert, by_layer, published_names
from wamkit.models.published import WEIGHTS, ConversionError, read_pickle, read_published, write_pretrained


def convert(source: Path, destination: Path, *, config: FastWAMConfig | None = None) -> Path:
    """Read a published checkpoint into wamkit's layout, or write one of ours under LeRobot's names.

    Args:
        source: a published ``.pt``, LeRobot's ``model.safetensors`` or its folder, or a ``pretrained_model`` of ours.
        destination: folder to write (to wamkit), or the ``.safetensors`` file for LeRobot.
        config: the published checkpoint's, where it is not the released one.

    Returns:
        The weights file written.

    Raises:
        ConversionError: the source cannot be read, its names or sizes do not fit, or Wan's VAE cannot be loaded.
    """
    file = source if source.is_file() else source / WEIGHTS
    if not file.is_file():
        raise ConversionError(f"{source} holds no {WEIGHTS}; name a checkpoint file or folder")
    tensors = _read(file)
    if any(name.startswith("backbone.") for name in tensors):
        return _write_lerobot(tensors, destination)
    return _write_wamkit(by_expert(tensors), config or preset("paper"), destination)


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_published(file)
    values = read_pickle(file)
    parts = ("mot", "proprio_encoder")
    if not isinstance(values, Mapping) or not all(isinstance(values.get(part), Mapping) for part in parts):
        raise ConversionError(f"{file} is no published Fast-WAM: it lacks mot or proprio_encoder")
    return {f"{part}.{name}": value for part in parts for name, value in values[part].items()}


def _write_wamkit(published: Mapping[str, Tensor], config: FastWAMConfig, destination: Path) -> Path:
    model = FastWAM(config)
    try:
        model.vae.load_pretrained()
    except FileNotFoundError as error:
        raise ConversionError(f"a published Fast-WAM holds no VAE: {error}") from error
    own = model.state_dict()
    names = published_names(own)
    odd = sorted(set(names.values()) ^ set(published))
    odd += [
        theirs for ours, theirs in names.items() if theirs in published and own[ours].shape != published[theirs].shape
    ]
    if odd:
        raise ConversionError(
            f"{len(odd)} names or sizes do not fit, {odd[0]!r} for one: the file is another model's, or the config is"
            " not its own"
        )
    complete = {name: (published[names[name]] if name in names else value) for name, value in own.items()}
    cloned = {name: value.clone() for name, value in complete.items()}
    return write_pretrained(destination, "fast_wam", "policy", config, cloned)


def _write_lerobot(tensors: Mapping[str, Tensor], destination: Path) -> Path:
    published = by_layer({theirs: tensors[ours] for ours, theirs in published_names(tensors).items()})
    file = destination if destination.suffix == ".safetensors" else destination / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in published.items()}, file, metadata={"format": "pt"})
    return file
