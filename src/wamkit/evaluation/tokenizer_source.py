"""Tokenizers and encoders out of checkpoints of whatever model holds one."""

from __future__ import annotations

from pathlib import Path

from wamkit.configuration import from_dict
from wamkit.encoders.base import VideoTokenizer, VisualEncoder
from wamkit.errors import WamkitError, suggest
from wamkit.inference.checkpoints import checkpoint_folder, read_config
from wamkit.models import registry
from wamkit.models.base import WorldActionModel
from wamkit.training.state import load_pretrained


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
