"""Tokenizers and encoders: out of checkpoints of whatever model holds one, and with published weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wamkit.configuration import from_dict
from wamkit.encoders.base import VideoTokenizer, VisualEncoder
from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.encoders.wan_vae import WanVAE, WanVAEConfig, wan22_vae
from wamkit.errors import WamkitError, suggest
from wamkit.inference.checkpoints import checkpoint_folder, read_config
from wamkit.models import registry
from wamkit.models.base import WorldActionModel
from wamkit.training.state import load_pretrained

PUBLISHED: dict[str, Callable[[], DINOv3Config | WanVAEConfig]] = {
    "dinov3": DINOv3Config,
    "wan21_vae": WanVAEConfig,
    "wan22_vae": wan22_vae,
}
"""Those whose weights others have published; each config names where."""


def load_published(config: DINOv3Config | WanVAEConfig) -> VideoTokenizer | VisualEncoder:
    """A published tokenizer or encoder with its weights, on the CPU.

    Raises:
        WamkitError: the weights are not at hand.
    """
    module = WanVAE(config) if isinstance(config, WanVAEConfig) else DINOv3(config)
    try:
        module.load_pretrained()
    except FileNotFoundError as error:
        raise WamkitError(str(error)) from error
    return module.eval()


def parts_of(model: WorldActionModel) -> dict[str, VideoTokenizer | VisualEncoder]:
    """A model's video tokenizers and visual encoders by the name of its attribute, tokenizers first."""
    kinds = (VideoTokenizer, VisualEncoder)
    return {name: part for kind in kinds for name, part in model.named_children() if isinstance(part, kind)}


def load_part(checkpoint: str | Path, name: str | None = None) -> VideoTokenizer | VisualEncoder:
    """One tokenizer or encoder of a checkpoint, on the CPU.

    Args:
        checkpoint: a run's folder, or a checkpoint in it.
        name: which of the model's, such as ``tokenizer``, ``vae``, ``representation``; None: the tokenizer, else the
            encoder.

    Raises:
        WamkitError: no checkpoint there, or no such part in its model.
    """
    folder = checkpoint_folder(checkpoint)
    kind, values, _ = read_config(folder)
    chosen = registry.model_class(kind)
    model = chosen(from_dict(chosen.config_class, values, "config.json"))
    load_pretrained(model, folder)
    parts = parts_of(model)
    if not parts:
        raise WamkitError(f"{folder} holds a {kind!r}, which has no visual tokenizer or encoder of its own.")
    if name is None:
        return next(iter(parts.values())).eval()
    if name not in parts:
        raise WamkitError(f"the {kind!r} in {folder} has no tokenizer or encoder {name!r}.{suggest(name, parts)}")
    return parts[name].eval()
