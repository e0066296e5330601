"""What the closed-loop experiments share: policies that differ in one thing, trained alike, judged on the same trials.

All arms of a seed that belong to one family start from the same first stages: these see no action, and no arm changes
what they learn. Each stage is a run in a folder of its own; what is finished there is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.cli.progress import progress_bar
from wamkit.envs.recording import record_episodes
from wamkit.evaluation.arms import PolicyArm
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import build_eval, write_eval
from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.evaluation.statistics import side_by_side
from wamkit.evaluation.workers import EnvFactory
from wamkit.inference.policy import load
from wamkit.models import registry
from wamkit.models.base import WorldActionModel
from wamkit.nn.lora import base_name, is_lora
from wamkit.recipes.lawam_metaworld import lawam_metaworld
from wamkit.recipes.light_wam_metaworld import light_wam_metaworld
from wamkit.training.checkpoint import WEIGHTS, load_weights
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig
from wamkit.training.loop import train

NATIVE_HZ = 80.0
"""MetaWorld's control rate; a policy of several rates acts at it."""
UNSEEN = 1_000_000
"""Namespace of the initial states of demonstrations that no arm learns from."""


@dataclass(frozen=True)
class Family:
    """Policies that start from the same first stages, trained once for each seed."""

    folder: str
    recipe: Callable[[], TrainConfig]
    """All of its stages but the last are shared."""
    parts: tuple[str, ...]
    """How the names of the shared weights begin."""
    dataset: Callable[[argparse.Namespace, Path], DatasetConfig] | None = None
    """From the options and the recording's folder, where it is not `dataset`."""


LATENT = Family("shared", lawam_metaworld, ("vision_encoder.", "lam."))
"""LaWAM's: the visual encoder and the latent-action model."""
VIDEO = Family("shared_video", light_wam_metaworld, ("vae.", "text.", "backbone."))
"""Of all models on a video backbone, which is the same in each: VAE and video model."""


@dataclass(frozen=True)
class TrainedArm:
    """One arm: what it is made of, and what it learns from."""

    name: str
    model: Any
    """Its config."""
    dataset: Callable[[Path], DatasetConfig]
    """From the recording's folder."""
    recipe: Callable[[], TrainConfig] = lawam_metaworld
    """Gives its last stage."""
    family: Family = LATENT


def parser(
    doc: str, tasks: Sequence[str], benchmark: str, *, recipes: Sequence[Callable[[], TrainConfig]] = (lawam_metaworld,)
) -> argparse.ArgumentParser:
    """The flags of an experiment; the defaults are the real one, ``--toy`` the smallest that runs.

    Every stage of ``recipes`` has a flag for its steps; arms that share a stage's name share its steps.
    """
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tasks", nargs="+", default=list(tasks))
    flags.add_argument("--demonstrations", type=int, default=25, help="for each task")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and sampling")
    flags.add_argument("--episodes", type=int, default=50, help="unseen initial states, for each task and seed")
    flags.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    stages = {stage.name: stage.steps for recipe in reversed(recipes) for stage in recipe().stages}
    for name, steps in stages.items():
        flags.add_argument(f"--{name}_steps", type=int, default=steps)
    flags.add_argument("--arms", nargs="+", help="only these; tests are made between those that are among them")
    flags.add_argument("--max_steps", type=int, default=None, help="time limit of an episode; default the simulator's")
    flags.add_argument("--n_action_steps", type=int, default=None, help="executed of each chunk; default all of it")
    flags.add_argument("--workers", type=int, default=None, help="simulator processes; default one a core")
    flags.add_argument("--output_dir", type=Path, default=Path("outputs") / benchmark)
    flags.set_defaults(benchmark=benchmark, stages=tuple(stages))
    flags.add_argument("--toy", action="store_true", help="two steps of everything: shows that it runs, nothing else")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return flags


def parsed(flags: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ``--toy`` sets what was not asked for otherwise."""
    small: dict[str, Any] = dict(demonstrations=2, seeds=[0], episodes=1, max_steps=8, workers=1)
    small |= dict.fromkeys((f"{name}_steps" for name in flags.get_default("stages")), 2)
    toy = flags.parse_known_args(arguments)[0].toy
    if toy:
        flags.set_defaults(**small, tasks=flags.get_default("tasks")[:1])
    return flags.parse_args(arguments)


def chosen(options: argparse.Namespace, arms: Iterable[str]) -> list[str]:
    """Those of an experiment's arms that ``--arms`` asks for, in the experiment's order."""
    known = list(arms)
    if unknown := set(options.arms or ()) - set(known):
        raise SystemExit(f"--arms: no arm {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if options.arms is None or name in options.arms]


def run(
    options: argparse.Namespace,
    arms: Sequence[TrainedArm],
    pairs: Sequence[tuple[str, str]],
    *,
    measure: Callable[[int, dict[str, Path]], dict[str, Any]] | None = None,
    **extra: Any,
) -> None:
    """Records, trains, evaluates, and prints the table; ``result.json`` in the output folder holds every episode.

    Args:
        options: from `parsed`.
        arms: all of the experiment; compared are the `chosen` ones.
        pairs: arm and baseline of each paired test.
        measure: what else to find out about a seed's checkpoints, given by arm; stands under ``measured`` by seed.
        extra: more keys of the result.
    """
    names = chosen(options, (arm.name for arm in arms))
    arms = [arm for arm in arms if arm.name in names]
    pairs = [pair for pair in pairs if set(pair) <= set(names)]
    recordings = record(options, cameras_of(arms))
    episodes: list[dict[str, Any]] = []
    checkpoints: dict[str, str] = {}
    for seed in options.seeds:
        shared = {family: train_stages(options, seed, family, recordings) for family in {arm.family for arm in arms}}
        trained = {arm.name: train_policy(options, seed, arm, recordings, shared[arm.family]) for arm in arms}
        hashes = {name: checkpoint_record(path)["sha256"] for name, path in trained.items()}
        checkpoints |= {f"{name}/seed{seed}": digest for name, digest in hashes.items()}
        episodes += evaluate(options, seed, trained, hashes, cameras_of(arms))
        if measure is not None:
            extra.setdefault("measured", {})[str(seed)] = measure(seed, trained)
    described = {key: value for key, value in vars(options).items() if key not in ("output_dir", "json", "stages")}
    record_of_run = collect(config=described, seeds=options.seeds, options=described, checkpoints=checkpoints)
    order = {arm.name: position for position, arm in enumerate(arms)}
    episodes.sort(key=lambda episode: (order[episode["arm"]], episode["seed"]))
    result = build_eval(episodes, record_of_run, comparisons=pairs, **extra)
    path = write_eval(options.output_dir / "result.json", result)
    print("\n".join(side_by_side(result["arms"]).lines()))
    for line in result["comparisons"][: len(pairs)]:
        low, high = (100 * end for end in line["ci95"])
        print(
            f"{line['arm']} - {line['baseline']}: {100 * line['difference']:+.1f} points [{low:+.1f}, {high:+.1f}], "
            f"McNemar p {line['p_value']:.3g} (Holm {line['p_holm']:.3g})"
        )
    print(path)
    if options.json:
        print(json.dumps({"benchmark": options.benchmark, "toy": options.toy, **without_episodes(result)}))


def without_episodes(result: dict[str, Any]) -> dict[str, Any]:
    """What goes into ``benchmarks/results``: all but the single episodes."""
    return {key: value for key, value in result.items() if key != "episodes"}


def cameras_of(arms: Sequence[TrainedArm]) -> tuple[str, ...]:
    """Every camera that some arm looks through."""
    return tuple(dict.fromkeys(camera for arm in arms for camera in arm.model.cameras))


def record(options: argparse.Namespace, cameras: tuple[str, ...], *, unseen: int = 0) -> Path:
    """The packaged expert's demonstrations of all tasks, at the native rate.

    Args:
        options: from `parsed`.
        cameras: to look through.
        unseen: so many of each task that no arm learns from, in a recording of their own.
    """
    root = options.output_dir / ("unseen" if unseen else "recordings")
    with progress_bar("recording") as progress:
        record_episodes(
            "metaworld",
            options.tasks,
            root,
            episodes=unseen or options.demonstrations,
            seed=UNSEEN if unseen else 0,
            cameras=cameras,
            workers=0 if options.toy else options.workers,
            resume=True,
            progress=progress,
        )
    return root


def _stage(options: argparse.Namespace, stage: StageConfig) -> StageConfig:
    steps = getattr(options, f"{stage.name}_steps")
    stage = dataclasses.replace(stage, steps=steps, warmup_steps=min(stage.warmup_steps, steps // 2))
    return dataclasses.replace(stage, batch_size=4) if options.toy else stage


def _config(
    options: argparse.Namespace,
    seed: int,
    output_dir: Path,
    recipe: TrainConfig,
    stages: Sequence[StageConfig],
    **fields: Any,
) -> TrainConfig:
    return dataclasses.replace(
        recipe,
        name=output_dir.parent.name,
        preset=options.preset,
        stages=tuple(_stage(options, stage) for stage in stages),
        seed=seed,
        output_dir=str(output_dir),
        logger="none",
        resume=True,
        **fields,
    )


def dataset(options: argparse.Namespace, recordings: Path, **fields: Any) -> DatasetConfig:
    """The recipe's, with every episode trained on; all runs share decoded frames, and features where encoders agree."""
    values: dict[str, Any] = dict(roots=(str(recordings),), cache_dir=str(options.output_dir / "cache"))
    return dataclasses.replace(lawam_metaworld().dataset, holdout_episodes=0, **(values | fields))


def train_stages(options: argparse.Namespace, seed: int, family: Family, recordings: Path) -> Path:
    """The shared first stages of a family and a seed."""
    output_dir, recipe = options.output_dir / family.folder / f"seed{seed}", family.recipe()
    data = (family.dataset or dataset)(options, recordings)
    config = _config(options, seed, output_dir, recipe, recipe.stages[:-1], dataset=data)
    with progress_bar(f"{family.folder}, seed {seed}") as progress:
        return train(config, progress=progress)


def train_policy(options: argparse.Namespace, seed: int, arm: TrainedArm, recordings: Path, shared: Path) -> Path:
    """Last stage of an arm."""
    output_dir, recipe = options.output_dir / arm.name / f"seed{seed}", arm.recipe()
    data = arm.dataset(recordings)
    config = _config(options, seed, output_dir, recipe, recipe.stages[-1:], dataset=data, model_config=arm.model)
    with progress_bar(f"{arm.name}, seed {seed}") as progress:
        return train(
            config, progress=progress, build_model=lambda config: started_from(shared, config, arm.family.parts)
        )


def started_from(shared: Path, config: TrainConfig, parts: tuple[str, ...]) -> WorldActionModel:
    """A new model with the shared parts of a checkpoint, whatever the rest of it looks like.

    Corrections of low rank are no part of what is shared: a model without them takes over the same weights.
    """

    def is_shared(name: str) -> bool:
        return name.startswith(parts) and not is_lora(name)

    model = registry.build(config.model, config.model_config)
    stored = {base_name(k): v for k, v in load_weights(shared / WEIGHTS).items() if is_shared(k)}
    own = {base_name(name): name for name in model.state_dict() if is_shared(name)}
    if own.keys() != stored.keys():
        raise SystemExit(f"{shared} has other shared parts than this arm: train them into another --output_dir.")
    model.load_state_dict({own[name]: value for name, value in stored.items()}, strict=False)
    return model


def evaluate(
    options: argparse.Namespace, seed: int, trained: dict[str, Path], hashes: dict[str, str], cameras: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Every arm of a seed on the same initial states."""
    arms = []
    for name, checkpoint in trained.items():
        policy = load(checkpoint, embodiment="metaworld", rate_hz=NATIVE_HZ)
        arms.append(PolicyArm(policy, name, identity=hashes[name]))
    make = EnvFactory("metaworld", {"resolution": 128, "cameras": cameras} | _limit(options))
    settings = RolloutSettings(
        seed=seed, n_episodes=options.episodes, workers=options.workers, n_action_steps=options.n_action_steps
    )
    output_dir = options.output_dir / "evaluation" / f"seed{seed}"
    with progress_bar(f"evaluating seed {seed}") as progress:
        return rollout(arms, options.tasks, make, output_dir, settings, resume=True, progress=progress)


def _limit(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.max_steps is None else {"max_steps": options.max_steps}
