"""Which pretext task gives the self-trained encoder the better eyes: masked autoencoder or joint embedding with SIGReg?

Both are trained on the demo's recordings for the recipe's steps. Then, on frames of expert episodes from other initial
states, a ridge regression from all patch features, cross-validated by episode, looks for the end effector's and the
object's position (`wamkit.evaluation.probes`). Beside them, an encoder of random weights: what the pixels give away.

    python benchmarks/encoders.py [--seeds 0 1 2] [--encoder_steps N] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _closed_loop as closed_loop
import numpy as np
import torch

from wamkit.cli.demo import TASKS
from wamkit.envs.registry import make_env
from wamkit.evaluation.probes import encoder_probe
from wamkit.evaluation.provenance import collect
from wamkit.evaluation.results import write_json
from wamkit.models.lawam import LaWAM, LaWAMConfig, preset
from wamkit.recipes.lawam_metaworld import lawam_metaworld
from wamkit.training.checkpoint import WEIGHTS, load_weights
from wamkit.training.config import TrainConfig
from wamkit.training.loop import train

OBJECTIVES = ("masked_autoencoder", "joint_embedding")
FRAME_EVERY = 8
"""Steps of the expert between two frames that are probed: 0.1 s."""


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    (stage,) = (stage for stage in lawam_metaworld().stages if stage.name == "encoder")
    flags.add_argument("--tasks", nargs="+", default=list(TASKS))
    flags.add_argument("--demonstrations", type=int, default=25, help="for each task, to train on")
    flags.add_argument("--probe_episodes", type=int, default=15, help="for each task, from other initial states")
    flags.add_argument("--encoder_steps", type=int, default=stage.steps)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    flags.add_argument("--workers", type=int, default=None, help="simulator processes; default one a core")
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/encoders"))
    flags.add_argument("--toy", action="store_true", help="two steps on two episodes: shows that it runs, nothing else")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if flags.parse_known_args(arguments)[0].toy:
        flags.set_defaults(tasks=TASKS[:1], demonstrations=2, probe_episodes=3, encoder_steps=2, seeds=[0], workers=1)
    return flags.parse_args(arguments)


def frames_of(task: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Frames along the expert's way, uint8 [n, 3, H, W], and where hand and object then are."""
    model = preset(options.preset)
    env = make_env("metaworld", task, resolution=model.encoder.resolution, cameras=model.cameras[:1])
    found: dict[str, list[Any]] = {"frames": [], "end_effector": [], "object": [], "episodes": []}
    rng = np.random.default_rng(0)
    for trial in range(options.probe_episodes):
        env.reset_trial(trial, render=False)
        for step in range(env.description.max_steps):
            if step % FRAME_EVERY == 0:
                found["frames"].append(env.render_frame().transpose(2, 0, 1))
                found["end_effector"].append(env.observe(images=False)["observation.state"][:3])
                found["object"].append(env.privileged_state()["object_positions"][0])
                found["episodes"].append(trial)
            _, success, truncated = env.step_action(env.expert_action(rng), render=False)
            if success or truncated:
                break
    env.close()
    return {name: np.stack(values) for name, values in found.items()}


def config_of(options: argparse.Namespace, model: LaWAMConfig, seed: int, output_dir: Path, root: Path) -> TrainConfig:
    recipe = lawam_metaworld()
    (stage,) = (stage for stage in recipe.stages if stage.name == "encoder")
    steps = options.encoder_steps
    stage = dataclasses.replace(stage, steps=steps, warmup_steps=min(stage.warmup_steps, steps // 2))
    return dataclasses.replace(
        recipe,
        preset=options.preset,
        model_config=model,
        dataset=closed_loop.dataset(options, root),
        stages=(dataclasses.replace(stage, batch_size=4) if options.toy else stage,),
        seed=seed,
        output_dir=str(output_dir),
        logger="none",
        resume=True,
    )


@torch.no_grad()
def probe(model: LaWAM, frames: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """R2 for each task, and the mean over tasks."""
    model.eval()
    tasks = {}
    for task, found in frames.items():
        batches = torch.from_numpy(found["frames"]).split(64)
        features = torch.cat([model.encode(batch) for batch in batches]).numpy()
        positions = {name: found[name] for name in ("end_effector", "object")}
        tasks[task] = encoder_probe(features, positions, found["episodes"])
    means = {name: float(np.mean([row[name]["r2"] for row in tasks.values()])) for name in ("end_effector", "object")}
    return {**means, "tasks": tasks}


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    root = closed_loop.record(options, preset(options.preset).cameras)
    frames = {task: frames_of(task, options) for task in options.tasks}
    base = preset(options.preset)
    encoders: dict[str, dict[str, Any]] = {name: {} for name in ("random_weights", *OBJECTIVES)}
    for seed in options.seeds:
        torch.manual_seed(seed)
        encoders["random_weights"][str(seed)] = probe(LaWAM(base), frames)
        for objective in OBJECTIVES:
            config = dataclasses.replace(base, encoder=dataclasses.replace(base.encoder, objective=objective))
            output_dir = options.output_dir / objective / f"seed{seed}"
            checkpoint = train(config_of(options, config, seed, output_dir, root))
            model = LaWAM(config)
            model.load_state_dict(load_weights(checkpoint / WEIGHTS), strict=False)
            encoders[objective][str(seed)] = probe(model, frames)
        for name, seeds in encoders.items():
            row = seeds[str(seed)]
            print(f"seed {seed} {name:20s} R2 end effector {row['end_effector']:.3f}, object {row['object']:.3f}")
    described = {key: value for key, value in vars(options).items() if key not in ("output_dir", "json")}
    result = {
        "benchmark": "encoders",
        "toy": options.toy,
        "encoders": encoders,
        "frames": {task: len(found["frames"]) for task, found in frames.items()},
        "provenance": collect(config=described, seeds=options.seeds, options=described),
    }
    write_json(options.output_dir / "result.json", result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
