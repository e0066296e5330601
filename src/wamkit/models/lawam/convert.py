"""LaWAM's published checkpoints in wamkit's layout, and back: ``wam convert lawam SOURCE DESTINATION``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from wamkit.data.embodiments import embodiment_name
from wamkit.data.normalize import PREPROCESSOR, Normalizer
from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.models.lawam.published_names import to_published, to_wamkit
from wamkit.models.published import (
    WEIGHTS,
    ConversionError,
    pretrained_folders,
    read_beside,
    read_pickle,
    read_pretrained_config,
    read_published,
    read_published_metadata,
    write_pretrained,
)

CARRIED = "published_extras.safetensors"
"""What the published file holds and our model has no use for, kept beside ours for the way back."""
ROOT = "policy_backend."
DINO_OLD, DINO_NEW = "lam.vision_encoder.model.layer.", "lam.vision_encoder.model.model.layer."
"""Older transformers have the blocks one level higher; both are read."""


def released(config: LaWAMConfig) -> LaWAMConfig:
    """``config`` with each choice on which paper and released code differ (papers.md 1.9) set to the code's."""
    return replace(
        config,
        latent_action=replace(config.latent_action, position_code="overlaid", state_readout="per_embodiment"),
        vlm=replace(config.vlm, layout="released"),
        action=replace(config.action, time_code="seconds", time_code_at="every_block", time_unit_s=1.0),
        valid_steps="floor",
        reconstruction="smooth_l1",
        kl_weight=5e-5,
        subgoal="insulated",
    )


def config_of_lerobot(values: Mapping[str, Any]) -> LaWAMConfig:
    """Our config of a checkpoint in LeRobot's layout, from its ``config.json``; the trunk is Qwen3-VL-2B's."""
    config = released(preset("paper"))
    primary, wrist = values.get("primary_image_features"), values.get("wrist_image_features")
    names = [*(primary or []), *(wrist or [])] or sorted(
        (name for name in values.get("input_features") or {} if name.startswith("observation.images.")),
        key=lambda name: any(mark in name for mark in ("wrist", "eye_in_hand", "image2")),
    )
    cameras = tuple(name.removeprefix("observation.images.") for name in names)
    return replace(
        config,
        cameras=cameras or config.cameras,
        horizon_s=float(values.get("flow_horizon_sec", config.horizon_s)),
        max_actions=int(values.get("chunk_size", config.max_actions)),
        latent_queries=int(values.get("num_action_queries", config.latent_queries)),
        action_queries=int(values.get("flow_action_num_queries", config.action_queries)),
        action=replace(
            config.action, denoise_steps=int(values.get("flow_num_inference_steps", config.action.denoise_steps))
        ),
    )


def convert(
    source: Path,
    destination: Path,
    *,
    config: LaWAMConfig | None = None,
) -> Path:
    """Read a published checkpoint into wamkit's layout, or write one of ours under the published names.

    Which of the two is told by the names in the source.

    Args:
        source: a ``.safetensors`` or ``.pt`` state dict, or a folder with ``model.safetensors``.
        destination: folder to write (to wamkit: a ``pretrained_model``), or the ``.safetensors`` file to publish.
        config: the published checkpoint's, where it is neither in the source nor the released one.

    Returns:
        The weights file written.

    Raises:
        ConversionError: the source cannot be read, or its names or sizes do not fit.
    """
    file = _weights_file(source)
    tensors = _read(file)
    if not any(ROOT in name for name in tensors):
        own = config or read_pretrained_config(file.parent, "lawam", LaWAMConfig)
        return _write_published(tensors, own, file.parent / CARRIED, destination)
    beside = file.parent / "config.json"
    values = read_beside(beside) if beside.is_file() else {}
    chosen = config or _sized(config_of_lerobot(values) if values else released(preset("paper")), tensors)
    written = _write_wamkit(tensors, chosen, destination)
    _write_statistics(file.parent, values, destination)
    return written


def _sized(config: LaWAMConfig, tensors: Mapping[str, Tensor]) -> LaWAMConfig:
    """With the file's vocabulary: adding the placeholder token may have made the table longer."""
    for name, value in tensors.items():
        if name.endswith("language_model.embed_tokens.weight"):
            return replace(config, vlm=replace(config.vlm, vocabulary=value.shape[0]))
    return config


def _write_wamkit(tensors: Mapping[str, Tensor], config: LaWAMConfig, destination: Path) -> Path:
    prefix = next(name for name in tensors if ROOT in name).split(ROOT)[0]
    bare = {name.removeprefix(prefix + ROOT): value for name, value in tensors.items()}
    nested = any(name.startswith(DINO_NEW) for name in bare)
    if not nested:
        bare = {name.replace(DINO_OLD, DINO_NEW, 1): value for name, value in bare.items()}
    ours, carried = to_wamkit(bare, config)
    whole = {name: value.contiguous() for name, value in ours.items()}
    file = write_pretrained(destination, "lawam", "policy", config, whole)
    origin = {"format": "pt", "prefix": prefix, "dino": "nested" if nested else "flat"}
    save_file({name: value.contiguous() for name, value in carried.items()}, destination / CARRIED, metadata=origin)
    return file


def _write_statistics(source: Path, values: Mapping[str, Any], destination: Path) -> None:
    """Normalisation statistics, where LeRobot wrote some beside the weights."""
    if not (source / f"{PREPROCESSOR}.json").is_file():
        return
    embodiment = embodiment_name(int(values.get("embodiment_id", 31)))
    read = Normalizer.load(source, embodiment=embodiment)
    rate = values.get("action_hz")
    rates = {embodiment: float(rate)} if rate is not None else {}
    Normalizer(read.statistics, read.modes, rates=rates).save(destination)


def _write_published(tensors: Mapping[str, Tensor], config: LaWAMConfig, extras: Path, destination: Path) -> Path:
    published, prefix, nested = to_published(tensors, config), "", True
    if extras.is_file():
        published |= read_published(extras)
        origin = read_published_metadata(extras)
        prefix, nested = origin.get("prefix", ""), origin.get("dino") != "flat"
    if not nested:
        published = {name.replace(DINO_NEW, DINO_OLD, 1): value for name, value in published.items()}
    file = destination if destination.suffix == ".safetensors" else destination / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {f"{prefix}{ROOT}{name}": value.contiguous() for name, value in published.items()}
    save_file(named, file, metadata={"format": "pt"})
    return file


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    for folder in pretrained_folders(source):
        for name in (WEIGHTS, "pytorch_model.pt"):
            if (folder / name).is_file():
                return folder / name
    raise ConversionError(f"{source} holds neither {WEIGHTS} nor pytorch_model.pt; name a checkpoint file or folder")


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_published(file)
    values = read_pickle(file)
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ConversionError(f"{file} is no state dict (names to tensors)")
    return values
