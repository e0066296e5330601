"""Names to models; importing this imports no model until one is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from wamkit.configuration import from_dict
from wamkit.errors import WamkitError, suggest
from wamkit.models.base import WorldActionModel

_MODELS = {
    "lawam": ("wamkit.models.lawam", "LaWAM"),
    "light_wam": ("wamkit.models.light_wam", "LightWAM"),
    "fast_wam": ("wamkit.models.fast_wam", "FastWAM"),
    "repwam": ("wamkit.models.repwam", "RepWAM"),
    "lingbot_va": ("wamkit.models.lingbot_va", "LingBotVA"),
}
PRESETS = ("tiny", "small", "paper")


def model_names() -> tuple[str, ...]:
    """The models of the registry."""
    return tuple(_MODELS)


def model_class(name: str) -> type[WorldActionModel]:
    """The class of a model.

    Raises:
        WamkitError: no such model, with a suggestion.
    """
    if name not in _MODELS:
        raise WamkitError(f"There is no model {name!r}.{suggest(name, _MODELS)}")
    module, attribute = _MODELS[name]
    return getattr(importlib.import_module(module), attribute)


def build(name: str, config: Any = "tiny") -> WorldActionModel:
    """A model from a preset's name, a config, or a config's dict; its weights are random."""
    chosen = model_class(name)
    if isinstance(config, str):
        config = chosen.preset(config)
    elif isinstance(config, dict):
        config = from_dict(chosen.config_class, config, name)
    return chosen(config)


def _count(modules: list[nn.Module]) -> int:
    seen = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(seen.values())


def describe(name: str) -> dict[str, Any]:
    """Presets with parameter counts, capabilities and stages; counted on the meta device, nothing downloaded."""
    chosen = model_class(name)
    presets: dict[str, Any] = {}
    stages: tuple[str, ...] = ()
    for preset in PRESETS:
        with torch.device("meta"):
            model = chosen(chosen.preset(preset))
        trainable: dict[int, int] = {}
        for stage in model.stages:
            model.prepare_stage(stage)
            trainable |= {id(p): p.numel() for p in model.parameters() if p.requires_grad}
        presets[preset] = {
            "parameters": _count([model]),
            "trainable": sum(trainable.values()),
            "parts": {part: _count(list(modules)) for part, modules in model.parts().items()},
            "stages": list(model.stages),
        }
        stages = model.stages if len(model.stages) > len(stages) else stages
    return {"presets": presets, "capabilities": vars(chosen.capabilities), "stages": list(stages)}
