"""``wam train RECIPE``: a recipe is a Python function that returns a config; any field of it is a dotted flag."""

from __future__ import annotations

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
        "Common flags: --output_dir DIR, --seed N, --resume, --dataset.roots DIR [DIR ...], --stages.STAGE.steps N.\n"
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
    config = parse(
        type(default), [_by_position(token, stages) for token in rest], verb=f"train {name}", default=default
    )

    from wamkit.cli.progress import progress_bar
    from wamkit.training.loop import train

    with progress_bar(name) as progress:
        checkpoint = train(config, progress=progress)
    print(checkpoint)
    return 0


def _by_position(token: str, stages: Sequence[str]) -> str:
    """``--stages.policy.steps`` -> ``--stages.1.steps``: stages have names, tyro counts them."""
    match = re.match(r"--stages\.([A-Za-z_]\w*)\.(.*)$", token, flags=re.DOTALL)
    if match is None:
        return token
    if match[1] not in stages:
        raise UsageError(f"no stage {match[1]!r} in this recipe.{suggest(match[1], stages)}")
    return f"--stages.{stages.index(match[1])}.{match[2]}"
