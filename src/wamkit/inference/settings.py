"""Inference settings: fields of a model's config that change how its weights are used, not what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wamkit.configuration import from_dict, to_dict
from wamkit.errors import suggest
from wamkit.inference.errors import PolicyError
from wamkit.models.base import WorldActionModel


def with_settings(model: type[WorldActionModel], config: Any, settings: Mapping[str, Any]) -> Any:
    """A config with other inference settings.

    Args:
        model: The config's model; its ``inference_settings`` are what may be changed.
        config: As the checkpoint has it.
        settings: Dotted names to values, such as ``{"mode": "action_only", "action_steps": 5}``.

    Raises:
        PolicyError: The model has no such setting.
        ConfigError: A value of the wrong type, or one that the setting does not know.
    """
    values = to_dict(config)
    for name, value in settings.items():
        if name not in model.inference_settings:
            known = model.inference_settings
            listed = f"It has {', '.join(known) or 'none'}."
            raise PolicyError(f"{model.name} has no inference setting {name!r}.{suggest(name, known)} {listed}")
        *path, field = name.split(".")
        place = values
        for part in path:
            place = place[part]
        place[field] = value
    return from_dict(type(config), values, "settings")


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """``("mode=action_only", "action_steps=5")`` -> ``{"mode": "action_only", "action_steps": 5}``.

    Raises:
        PolicyError: One is not of the form NAME=VALUE.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise PolicyError(f"{text!r} is no inference setting: write NAME=VALUE, such as mode=action_only.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def identity(checkpoint: str, settings: Mapping[str, Any]) -> str:
    """What stands for a checkpoint's digest where other settings are other behaviour."""
    return f"{checkpoint} with {json.dumps(settings, sort_keys=True)}" if settings else checkpoint
