"""Which of our tensors is which of the published Fast-WAM's, and of LeRobot's port of it (papers.md 4).

Both hold two experts under ``mot`` and ``proprio_encoder``; LeRobot's files keep the blocks of a layer together
(``mot.layers.3.blocks.video``), the published ones those of an expert (``mot.mixtures.video.blocks.3``), which is the
form of the names here. VAE and text encoder are in neither. Nothing is computed, so both ways are bit-equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from wamkit.dynamics.wan_names import original_name

_ACTION = {
    "enter": "action_encoder",
    "leave": "head",
    "text_embedder.0": "text_embedding.0",
    "text_embedder.2": "text_embedding.2",
    "time_embedder.0": "time_embedding.0",
    "time_embedder.2": "time_embedding.2",
    "time_projection.1": "time_projection.1",
}
_LAYER = re.compile(r"^mot\.layers\.(\d+)\.blocks\.(video|action)\.(.+)$")


def published_names(ours: Iterable[str]) -> dict[str, str]:
    """Published name of each of our tensors that a published file holds."""
    names = {}
    for name in ours:
        part, _, rest = name.partition(".")
        if part == "backbone":
            names[name] = f"mot.mixtures.video.{original_name(rest.removeprefix('model.'))}"
        elif part == "action":
            module, _, kind = rest.rpartition(".")
            published = original_name(rest) if rest.startswith("blocks.") else f"{_ACTION[module]}.{kind}"
            names[name] = f"mot.mixtures.action.{published}"
        elif part == "proprioception":
            names[name] = f"proprio_encoder.{rest}"
    return names


def by_expert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with LeRobot's root and its names of blocks brought to the published form."""
    return {_LAYER.sub(r"mot.mixtures.\2.blocks.\1.\3", name.removeprefix("model.")): v for name, v in tensors.items()}


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way: LeRobot's names, with its root."""
    pattern = re.compile(r"^mot\.mixtures\.(video|action)\.blocks\.(\d+)\.(.+)$")
    return {f"model.{pattern.sub(r'mot.layers.\2.blocks.\1.\3', name)}": value for name, value in tensors.items()}
