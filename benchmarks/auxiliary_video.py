"""Is predicting video worth its cost when the prediction is thrown away at test time? Light-WAM and Fast-WAM.

  light_wam              future video in the down-sampled latent beside the actions
  light_wam_no_video     the same without the video loss
  fast_wam               a video and an action expert with shared attention
  fast_wam_no_video      the same without the video loss
  lawam                  the latent world model's policy, on the same demonstrations

All models on a video backbone start from one VAE and one video model, trained on the demonstrations' frames; equal
steps, batches and demonstrations in the last stage. The controls act with the same parameters as their models.

    python benchmarks/auxiliary_video.py [--seeds 0 1 2] [--episodes 50] [--arms ...] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import _closed_loop as closed_loop

from wamkit.cli.demo import TASKS
from wamkit.models import registry
from wamkit.recipes.fast_wam_metaworld import fast_wam_metaworld
from wamkit.recipes.lawam_metaworld import lawam_metaworld
from wamkit.recipes.light_wam_metaworld import light_wam_metaworld

RECIPES = {"light_wam": light_wam_metaworld, "fast_wam": fast_wam_metaworld, "lawam": lawam_metaworld}
PAIRS = (
    ("light_wam", "light_wam_no_video"),
    ("fast_wam", "fast_wam_no_video"),
    ("light_wam", "lawam"),
    ("fast_wam", "lawam"),
)


def arms(options: argparse.Namespace) -> list[closed_loop.TrainedArm]:
    """All five, in the order of the table."""
    found = []
    for model, recipe in RECIPES.items():
        config = registry.model_class(model).preset(options.preset)
        family = closed_loop.LATENT if model == "lawam" else closed_loop.VIDEO
        variants = {model: config}
        if family is closed_loop.VIDEO:
            variants[f"{model}_no_video"] = dataclasses.replace(config, video_supervision="none")
        found += [
            closed_loop.TrainedArm(name, variant, lambda root: closed_loop.dataset(options, root), recipe, family)
            for name, variant in variants.items()
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    flags = closed_loop.parser(__doc__, TASKS, "auxiliary_video", recipes=tuple(RECIPES.values()))
    flags.set_defaults(n_action_steps=8)  # half a chunk, as the demo does; the papers execute a quarter to a third
    options = closed_loop.parsed(flags, arguments)
    closed_loop.run(options, arms(options), PAIRS)


if __name__ == "__main__":
    main()
