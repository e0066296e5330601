"""LingBot-VA's published transformers in wamkit's layout, and back: ``wam convert lingbot_va SOURCE DESTINATION``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from wamkit.encoders.wan_vae import WanVAE
from wamkit.models.lingbot_va.config import LingBotVAConfig, preset
from wamkit.models.lingbot_va.model import LingBotVA
from wamkit.models.lingbot_va.published_names import from_published, to_published
from wamkit.models.published import WEIGHTS, ConversionError, read_beside, read_published, write_pretrained

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def convert(source: Path, destination: Path, *, config: LingBotVAConfig | None = None) -> Path:
    """Read a published transformer into wamkit's layout, or write one of ours under the published names.

    Args:
        source: LeRobot's ``model.safetensors`` or its folder, a published folder ``transformer``, or a
            ``pretrained_model`` of ours.
        destination: folder to write (to wamkit), or the ``.safetensors`` file of the published form.
        config: the published checkpoint's, where it is not the released one.

    Returns:
        The weights file written.

    Raises:
        ConversionError: the source cannot be read, its names or sizes do not fit, or Wan's VAE cannot be loaded.
    """
    tensors = _read(source)
    if any(name.startswith("transformer.video.") for name in tensors):
        return _write_published(tensors, destination)
    return _write_wamkit(tensors, config or preset("paper"), destination)


def _read(source: Path) -> dict[str, Tensor]:
    if source.is_file():
        return read_published(source)
    for name in (WEIGHTS, "diffusion_pytorch_model.safetensors"):
        if (source / name).is_file():
            return read_published(source / name)
    if (source / INDEX).is_file():
        named = read_beside(source / INDEX).get("weight_map")
        if not isinstance(named, dict):
            raise ConversionError(f"{source / INDEX} names no files of weights: copy the checkpoint again")
        parts = [read_published(source / file) for file in sorted(set(named.values()))]
        return {name: value for part in parts for name, value in part.items()}
    raise ConversionError(f"{source} holds neither {WEIGHTS} nor a diffusers transformer; name a file or folder")


def _write_wamkit(published: Mapping[str, Tensor], config: LingBotVAConfig, destination: Path) -> Path:
    model = LingBotVA(config)
    if model.trains_tokenizer or not isinstance(model.tokenizer, WanVAE):
        raise ConversionError("a published LingBot-VA holds no VAE: name Wan's weights in the config's tokenizer")
    try:
        model.tokenizer.load_pretrained()
    except FileNotFoundError as error:
        raise ConversionError(f"a published LingBot-VA holds no VAE: {error}") from error
    own = model.state_dict()
    try:
        own |= from_published(published, own)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    cloned = {name: value.clone() for name, value in own.items()}
    return write_pretrained(destination, "lingbot_va", "adapt", config, cloned)


def _write_published(tensors: Mapping[str, Tensor], destination: Path) -> Path:
    if not any(name.startswith("transformer.actions.heads.enter.real") for name in tensors) or any(
        name.startswith("transformer.actions.blocks.") for name in tensors
    ):
        raise ConversionError("the published form has one backbone for frames and actions: set action to SharedBlocks")
    file = destination if destination.suffix == ".safetensors" else destination / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {f"transformer.{name}": value.contiguous().clone() for name, value in to_published(tensors).items()}
    save_file(named, file, metadata={"format": "pt"})
    return file
