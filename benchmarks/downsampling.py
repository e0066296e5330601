"""How coarse may the future be that Light-WAM learns to predict? Factors 1, 2 and 4 in the latent, and no video.

For each factor: success, steps per second and memory of the policy stage, and the error of the imagined future, in
pixels and in latents, on demonstrations that were not learned from, over copying the present at the same resolution.

    python benchmarks/downsampling.py [--seeds 0 1 2] [--episodes 50] [--arms ...] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _closed_loop as closed_loop
import numpy as np
import torch
from torch import Tensor

from wamkit.cli.groups import DatasetFlags, UsedPolicyFlags
from wamkit.cli.imagine import ImagineArguments, held_out_windows, imagine
from wamkit.data.lerobot import LeRobotSource
from wamkit.evaluation.results import load_json
from wamkit.evaluation.world_metrics import ratio_interval
from wamkit.inference.policy import load
from wamkit.models.light_wam import LightWAM, LightWAMConfig, preset
from wamkit.recipes.light_wam_metaworld import light_wam_metaworld
from wamkit.training.config import TrainConfig
from wamkit.types import Window

TASKS = ("door-open-v3",)
FACTORS = (1, 2, 4)
UNSEEN_EPISODES = 10


def configs(base: LightWAMConfig) -> dict[str, LightWAMConfig]:
    """Factor 2 is the paper's; the last arm predicts no video at all."""
    arms = {f"factor_{factor}": dataclasses.replace(base, downsample=factor) for factor in FACTORS}
    return arms | {"no_video": dataclasses.replace(base, video_supervision="none")}


def window_of(model: LightWAM, batch_size: int) -> Window:
    """A batch as the latent store serves it: training encodes no pictures."""
    window = model.fake_window(batch_size, stage="policy")
    shape = (batch_size, 1, model.latent_frames, model.latent_size[0] * model.latent_size[1], model.config.vae.channels)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(window, features={model.config.cameras[0]: latents})


def training_cost(models: dict[str, LightWAMConfig], batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a loss and its gradients, the arms taking turns, and what is kept for the backward pass."""
    built = {name: LightWAM(config) for name, config in models.items()}
    windows = {name: window_of(model, batch_size) for name, model in built.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    kept: dict[str, float] = {}
    for name, model in built.items():
        model.prepare_stage("policy")
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.loss(windows[name], "policy", torch.Generator().manual_seed(0)).total().backward()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept[name] = sum(size for place, size in storages.items() if place not in weights) / 2**20
    for _ in range(rounds):
        for name, model in built.items():
            start = time.perf_counter()
            model.loss(windows[name], "policy", torch.Generator().manual_seed(0)).total().backward()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds_per_step": statistics.median(seconds[name]), "kept_for_backward_mib": kept[name]}
        for name in models
    }


@torch.no_grad()
def latent_error(model: LightWAM, windows: Sequence[Window], episodes: np.ndarray) -> dict[str, Any]:
    """Squared error of the last imagined latent frame, in the arm's own latent, over that of the present's."""
    made, still, kept, seen = [], [], [], 0
    for window in windows:
        true, valid = model.latents_of(window)
        true, keep = model.coarse(true), valid.all(dim=1)
        imagined = model.imagined_latents(window.observation())
        for errors, guess in ((made, imagined[:, :, -1]), (still, true[:, :, 0])):
            errors.append((guess - true[:, :, -1]).square().flatten(1).mean(dim=1)[keep].numpy())
        kept.append(episodes[seen : seen + window.batch_size][keep.numpy()])
        seen += window.batch_size
    squared, copied = np.concatenate(made), np.concatenate(still)
    ratio, interval = ratio_interval(squared, copied, np.concatenate(kept))
    return {"squared": float(squared.mean()), "copy_present": float(copied.mean()), "ratio": ratio, "ci95": interval}


def video_errors(options: argparse.Namespace, trained: dict[str, Path], unseen: Path, seed: int) -> dict[str, Any]:
    """Errors on unseen demonstrations in pixels and in latents, of the arms that predict video."""
    errors = {}
    for name, checkpoint in trained.items():
        if name == "no_video":
            continue
        output_dir = options.output_dir / "imagine" / name / f"seed{seed}"
        arguments = ImagineArguments(
            policy=UsedPolicyFlags(checkpoint),
            dataset=DatasetFlags(unseen),
            output_dir=output_dir,
            windows=8 if options.toy else 256,
            device="cpu",
        )
        imagine(arguments)
        policy = load(checkpoint, device="cpu")
        assert isinstance(policy.model, LightWAM)
        config = TrainConfig.from_dict(load_json(checkpoint / "train_config.json"))
        windows, of_episode, _ = held_out_windows(arguments, policy, config, LeRobotSource(unseen))
        errors[name] = load_json(output_dir / "imagine.json")["pixel_error"] | {
            "latent": latent_error(policy.model, windows, of_episode)
        }
    return errors


def main(arguments: Sequence[str] | None = None) -> None:
    flags = closed_loop.parser(__doc__, TASKS, "downsampling", recipes=(light_wam_metaworld,))
    flags.set_defaults(n_action_steps=8)  # half a chunk, as the demo does; the papers execute a quarter to a third
    options = closed_loop.parsed(flags, arguments)
    models = configs(preset(options.preset))
    arms = [
        closed_loop.TrainedArm(
            name,
            config,
            lambda root: closed_loop.dataset(options, root),
            light_wam_metaworld,
            closed_loop.VIDEO,
        )
        for name, config in models.items()
    ]
    unseen = closed_loop.record(options, closed_loop.cameras_of(arms), unseen=2 if options.toy else UNSEEN_EPISODES)
    compared = {name: models[name] for name in closed_loop.chosen(options, models)}
    closed_loop.run(
        options,
        arms,
        [("factor_2", "factor_1"), ("factor_2", "factor_4"), ("factor_2", "no_video")],
        measure=lambda seed, trained: video_errors(options, trained, unseen, seed),
        cost=training_cost(compared, batch_size=2 if options.toy else 32, rounds=2 if options.toy else 15),
    )


if __name__ == "__main__":
    main()
