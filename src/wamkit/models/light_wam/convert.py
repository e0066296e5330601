"""Light-WAM's published checkpoints in wamkit's layout, and back: ``wam convert light_wam SOURCE DESTINATION``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wamkit.models.light_wam.config import LightWAMConfig, preset
from wamkit.models.light_wam.model import LightWAM
from wamkit.models.light_wam.published_names import flattened, links, nested
from wamkit.models.published import (
    WEIGHTS,
    ConversionError,
    pretrained_folders,
    read_pickle,
    read_pretrained_config,
    read_published,
    write_pretrained,
)
from wamkit.nn.lora import is_lora


def released(config: LightWAMConfig) -> LightWAMConfig:
    """``config`` with each choice on which paper and released scripts differ (papers.md 2.9) set to the scripts'."""
    return replace(config, supervised_steps=8, expert=replace(config.expert, merge="softmax"))


def convert(source: Path, destination: Path, *, config: LightWAMConfig | None = None) -> Path:
    """Read a published checkpoint into wamkit's layout, or write one of ours under the published names.

    Which of the two is told by the source: a published one is a ``.pt`` file, ours a ``pretrained_model`` folder.
    A published file holds no VAE, and may hold no frozen backbone: these come from the config's Wan weights.

    Args:
        source: the ``.pt`` file, or the folder.
        destination: folder to write (to wamkit), or the ``.pt`` file to publish.
        config: the published checkpoint's, where it is not the released one.

    Returns:
        The weights file written.

    Raises:
        ConversionError: the source cannot be read, its names or sizes do not fit, or Wan's weights cannot be loaded.
    """
    if source.is_dir():
        return _write_published(source, destination)
    return _write_wamkit(_read(source), config or released(preset("paper")), destination)


def _read(file: Path) -> dict[str, Tensor]:
    values = read_pickle(file)
    if not isinstance(values, Mapping):
        raise ConversionError(f"{file} is no dict of state dicts")
    return flattened(values)


def _write_wamkit(published: Mapping[str, Tensor], config: LightWAMConfig, destination: Path) -> Path:
    model = LightWAM(config)
    own = model.state_dict()
    shapes = {name: value.shape for name, value in own.items()}
    wanted = list(links(own))
    frozen = [link for link in wanted if link.ours[0].startswith("backbone.") and not is_lora(link.ours[0])]
    absent = [name for link in frozen for name in link.published if name not in published]
    try:
        model.vae.load_pretrained()
        if absent:
            model.backbone.load_pretrained()
    except FileNotFoundError as error:
        raise ConversionError(
            f"a published Light-WAM holds no VAE{' and this one no frozen backbone' if absent else ''}: {error}"
        ) from error
    have = [link for link in wanted if not (link in frozen and any(name in absent for name in link.published))]
    missing = [name for link in have for name in link.published if name not in published]
    unknown = sorted(set(published) - {name for link in have for name in link.published})
    if missing or unknown:
        raise ConversionError(
            f"{len(missing)} names are missing ({', '.join(missing[:3]) or 'none'}) and {len(unknown)} unknown"
            f" ({', '.join(unknown[:3]) or 'none'}): the file is another model's, or the config is not its own"
        )
    ours: dict[str, Tensor] = {}
    for link in have:
        ours |= link.to_ours(published, shapes)
    wrong = [name for name, value in ours.items() if value.shape != shapes[name]]
    if wrong:
        raise ConversionError(
            f"{len(wrong)} sizes differ, {wrong[0]} for one ({tuple(ours[wrong[0]].shape)} in the file,"
            f" {tuple(shapes[wrong[0]])} by the config): give the file's own config"
        )
    # Cloned: a small text encoder's tied embedding would otherwise be refused by safetensors.
    complete = {name: value.clone() for name, value in (model.state_dict() | ours).items()}
    return write_pretrained(destination, "light_wam", "policy", config, complete)


def _write_published(source: Path, destination: Path) -> Path:
    folder = next((folder for folder in pretrained_folders(source) if (folder / WEIGHTS).is_file()), None)
    if folder is None:
        raise ConversionError(f"{source} holds no {WEIGHTS}; name a pretrained_model folder")
    read_pretrained_config(folder, "light_wam", LightWAMConfig)
    tensors = read_published(folder / WEIGHTS)
    published: dict[str, Tensor] = {}
    for link in links(tensors):
        published |= link.to_published(tensors)
    file = destination if destination.suffix == ".pt" else destination / "light_wam.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(nested({name: value.contiguous() for name, value in published.items()}), file)
    return file
