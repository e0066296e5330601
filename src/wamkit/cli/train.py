"""``wam train RECIPE``: a recipe is a Python function that returns a config; any field of it is a dotted flag."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Sequence
from typing import Any

from wamkit.cli import UsageError
from wamkit.cli.parsing import parse
from wamkit.errors import suggest


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes, found without importing them: each is a module of `wamkit.recipes`."""
    from wamkit import recipes

    return tuple(
        sorted(module.name for module in pkgutil.iter_modules(recipes.__path__) if not module.name.startswith("_"))
    )


def load_recipe(name: str) -> Any:
    """The config that recipe ``name`` returns: the function of that name in the module of that name.

    Raises:
        UsageError: There is no such recipe.
    """
    names = recipe_names()
    if name not in names:
        raise UsageError(f"no recipe {name!r}.{suggest(name, names)}")
    return getattr(importlib.import_module(f"wamkit.recipes.{name}"), name)()


def usage() -> str:
    """The text of ``wam train --help``."""
    return (
        "usage: wam train RECIPE [--any.field VALUE ...]\n\n"
        "Run a recipe: every stage of a model, with exact resume (--resume).\n\n"
        f"recipes: {', '.join(recipe_names()) or '(none)'}\n\n"
        "Common flags: --output_dir DIR, --seed N, --resume, --dataset.roots DIR [DIR ...], --policy.path DIR,\n"
        "--preset tiny|small|paper, --stages.STAGE.steps N, --model_config.FIELD VALUE.\n"
        "`wam train RECIPE --help` lists every field of that recipe with its value."
    )


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"name a recipe first: wam train RECIPE. Recipes: {', '.join(recipe_names())}.")
    name, *rest = argv
    default = load_recipe(name)
    stages = [stage.name for stage in default.stages]
    tokens = [_field_of(token, stages) for token in rest]
    if default.model_config is None and any(token.startswith("--model_config.") for token in tokens):
        default = dataclasses.replace(default, model_config=_preset_config(default, tokens))
    config = parse(type(default), tokens, verb=f"train {name}", default=default)
    if config.preset != default.preset:
        _refuse_other_stages(name, config)

    from wamkit.cli.progress import progress_bar
    from wamkit.training.loop import train

    with progress_bar(name) as progress:
        checkpoint = train(config, progress=progress)
    print(checkpoint)
    return 0


def _field_of(token: str, stages: Sequence[str]) -> str:
    """A flag as people say it, as the config's field: ``--stages.policy.steps`` -> ``--stages.1.steps``."""
    match = re.match(r"--stages\.([A-Za-z_]\w*)\.(.*)$", token, flags=re.DOTALL)
    if match is None:
        return token
    if match[1] not in stages:
        raise UsageError(f"no stage {match[1]!r} in this recipe.{suggest(match[1], stages)}")
    return f"--stages.{stages.index(match[1])}.{match[2]}"


def _refuse_other_stages(name: str, config: Any) -> None:
    """Before the model is built: a preset that lacks a stage of the recipe, with the recipe that is for it.

    Raises:
        UsageError: The preset has other stages.
    """
    import torch

    from wamkit.models import registry

    with torch.device("meta"):
        model = registry.build(config.model, config.model_config or config.preset)
    lacking = [stage.name for stage in config.stages_to_run() if stage.name not in model.stages]
    if not lacking:
        return
    recipes = {other: load_recipe(other) for other in recipe_names()}
    fitting = [other for other, each in recipes.items() if (each.model, each.preset) == (config.model, config.preset)]
    raise UsageError(
        f"recipe {name} trains {', '.join(lacking)}, and preset {config.preset} of {config.model} has only the stages "
        f"{', '.join(model.stages)}: "
        + (f"use the recipe {' or '.join(fitting)}, which is for it." if fitting else "choose another preset.")
    )


def _preset_config(config: Any, tokens: Sequence[str]) -> Any:
    """The config of the preset that the command line will choose: what ``--model_config.x`` then changes."""
    from wamkit.models import registry

    preset = config.preset
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        flag, _, value = token.partition("=")
        if flag == "--preset":
            preset = value or following
    return registry.model_class(config.model).preset(preset)
