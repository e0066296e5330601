"""What the parts of RepWAM are worth: its tokenizer, its latent actions, video without actions.

``--experiment ablation``, the paper's own table on the demo's three tasks:

  repwam                     aligned tokenizer, latent actions learned on it in a stage of their own
  reconstruction_tokenizer   the tokenizer's twin that only reconstructs
  scrambled_tokenizer        aligned with another sample's features, their places dealt anew: the control of alignment
  no_latent_actions          pretrained on video alone
  joint_latent_actions       latent actions learned together with the tokenizer

``--experiment action_free``, pretraining on a mixture in which half of the episodes have no actions:

  mixture                    all episodes in every stage, actions where there are some
  half_alone                 the episodes with actions alone, in every stage

Equal steps, batches and demonstrations in the stages that arms have in common; every arm trains all of its own stages.
Beside success stands how the imagined video depends on actions, on demonstrations that no arm has seen.

    python benchmarks/repwam.py [--experiment ablation] [--seeds 0 1] [--episodes 20] [--arms ...] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _closed_loop as closed_loop

from wamkit.cli.demo import TASKS
from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture
from wamkit.data.windows import MixtureEntry, WindowSpec
from wamkit.envs.recording import record_episodes
from wamkit.evaluation.forward_dynamics import forward_dynamics
from wamkit.inference.policy import load
from wamkit.models.repwam.config import RepWAMConfig, preset
from wamkit.recipes._causal_metaworld import causal_metaworld
from wamkit.recipes.repwam_metaworld import repwam_metaworld, repwam_stages
from wamkit.training.config import DatasetConfig, TrainConfig

MORE = 2_000_000
"""Namespace of the initial states of the demonstrations whose actions are thrown away."""
EXPERIMENTS = {
    "ablation": (
        "repwam",
        "reconstruction_tokenizer",
        "scrambled_tokenizer",
        "no_latent_actions",
        "joint_latent_actions",
    ),
    "action_free": ("mixture", "half_alone"),
}


def aligned(config: RepWAMConfig, alignment: str) -> RepWAMConfig:
    """With another alignment of the tokenizer; without any, no representation is needed."""
    objective = dataclasses.replace(config.tokenizer.objective, alignment=alignment)
    tokenizer = dataclasses.replace(config.tokenizer, objective=objective)
    representation = None if alignment == "none" else config.representation
    return dataclasses.replace(config, tokenizer=tokenizer, representation=representation)


def configs(base: RepWAMConfig) -> dict[str, RepWAMConfig]:
    """Every arm's model."""
    return {
        "repwam": base,
        "reconstruction_tokenizer": aligned(base, "none"),
        "scrambled_tokenizer": aligned(base, "scrambled"),
        "no_latent_actions": dataclasses.replace(base, latent_actions="none"),
        "joint_latent_actions": dataclasses.replace(base, latent_actions="joint"),
        "mixture": base,
        "half_alone": base,
    }


def recipe(config: RepWAMConfig) -> TrainConfig:
    """All stages of an arm's own."""
    return causal_metaworld("repwam", repwam_stages(config), config)


def with_action_free(options: argparse.Namespace, recordings: Path) -> DatasetConfig:
    """The recordings, and as many demonstrations again that show the robot and say nothing of its actions."""
    bare = options.output_dir / "action_free"
    if not bare.exists():
        recorded = options.output_dir / "more"
        record_episodes(
            "metaworld",
            options.tasks,
            recorded,
            episodes=options.demonstrations,
            seed=MORE,
            cameras=preset(options.preset).cameras,
            workers=0 if options.toy else options.workers,
            resume=True,
        )
        without_actions(recorded, bare)
    return closed_loop.dataset(options, recordings, roots=(str(recordings), str(bare)))


def without_actions(recording: Path, destination: Path) -> None:
    """A copy of a recording that does not list its actions any more."""
    partial_copy = destination.with_suffix(".partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    shutil.copytree(recording, partial_copy)
    info = partial_copy / "meta/info.json"
    described = json.loads(info.read_text())
    described["features"] = {k: v for k, v in described["features"].items() if not k.startswith("action")}
    info.write_text(json.dumps(described))
    partial_copy.rename(destination)


def arms(options: argparse.Namespace) -> list[closed_loop.TrainedArm]:
    """Those of the experiment, each a family of its own: they differ from the first stage on."""
    models, found = configs(preset(options.preset)), []
    for name in EXPERIMENTS[options.experiment]:
        data = with_action_free if name == "mixture" else closed_loop.dataset
        own = partial(recipe, models[name])
        # A tokenizer belongs to what it was trained on, so nothing is shared but decoded frames.
        family = closed_loop.Family(f"stages_{name}", own, ("",), data)
        found.append(closed_loop.TrainedArm(name, models[name], partial(data, options), own, family))
    return found


def measure(options: argparse.Namespace, seed: int, trained: dict[str, Path]) -> dict[str, Any]:
    """How the imagined video of each arm depends on actions; see `wamkit.evaluation.forward_dynamics`."""
    return {name: imagined(options, seed, checkpoint) for name, checkpoint in trained.items()}


def imagined(options: argparse.Namespace, seed: int, checkpoint: Path) -> dict[str, Any]:
    """Of one checkpoint, on demonstrations that nobody has learned from."""
    policy = load(checkpoint, embodiment="metaworld", rate_hz=closed_loop.NATIVE_HZ)
    config = policy.model.config
    root = closed_loop.record(options, config.cameras, unseen=2 if options.toy else 5)
    spec = WindowSpec(
        frame_offsets_s=config.frame_offsets_s,
        cameras=config.cameras,
        resolution=config.resolution,
        chunk_s=config.sequence_s,
        max_actions=config.sequence_actions,
    )
    source = LeRobotSource(root)
    store = FrameStore.build(source, options.output_dir / "cache", config.cameras, spec.resolution)
    mixture = Mixture([MixtureEntry(source=source, frame_store=store)], spec, policy.normalizer, seed)
    count, size = (2, 2) if options.toy else (12, 32)
    batches = [range(first, first + size) for first in range(0, count * size, size)]
    episodes = [int(mixture.locate(draw)[1]) for batch in batches for draw in batch]
    return forward_dynamics(policy.model, [mixture.window(batch) for batch in batches], episodes, seed=seed)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = closed_loop.parser(__doc__, TASKS, "repwam", recipes=(repwam_metaworld,))
    flags.add_argument("--experiment", choices=tuple(EXPERIMENTS), default="ablation")
    # Half a chunk, which is one latent frame: what a causal model executes before it looks again.
    flags.set_defaults(seeds=[0, 1], episodes=20, n_action_steps=8)
    options = closed_loop.parsed(flags, arguments)
    first, *others = EXPERIMENTS[options.experiment]
    closed_loop.run(options, arms(options), [(first, name) for name in others], measure=partial(measure, options))


if __name__ == "__main__":
    main()
