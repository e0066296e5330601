"""Does one latent-action model learn from real recordings of several robots and rates, one of them without actions?

Imports DROID (video 5 Hz, rows 15 Hz), RT-1 (3 Hz), Bridge (5 Hz), Unitree G1 (30 Hz) and DROID without actions, trains
the recipe `lawam_recordings` on them in one mixture, and asks on held-out episodes: given the latent action that the
model reads from two frames, is LaWM's prediction of the second nearer to it than the first is (copy-the-present)?
Errors are standardised features' (`wamkit.evaluation.world_metrics`); intervals are a bootstrap over episodes.

    python benchmarks/recordings.py [--latent_action_steps 1000] [--output_dir DIR] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from wamkit.cli.progress import progress_bar
from wamkit.data.cache import FrameStore
from wamkit.data.importers import import_recording
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture
from wamkit.data.video import iterate_frames
from wamkit.data.windows import MixtureEntry
from wamkit.evaluation.held_out import as_numpy, encode_held_out
from wamkit.evaluation.provenance import collect
from wamkit.evaluation.results import write_json
from wamkit.evaluation.world_metrics import action_dependence, ratio_interval
from wamkit.inference.policy import load
from wamkit.models.base import WorldActionModel
from wamkit.recipes.lawam_recordings import CAMERA, PRIMARY_VIEWS, lawam_recordings
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.loop import train
from wamkit.training.stages import holdout_split

ACTION_FREE = "droid_action_free"
SEGMENT_S, GAP_S = 4.0, 0.5
BATCH = 64


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / os.environ.get("WAMKIT_TEST_DATA", "../shared/data")
    flags.add_argument("--data", type=Path, default=default, help="folder that holds droid/, rt1/, ...")
    flags.add_argument("--recordings", nargs="+", default=list(PRIMARY_VIEWS), choices=list(PRIMARY_VIEWS))
    flags.add_argument("--limit", type=int, default=None, help="episodes of each recording; default all")
    flags.add_argument("--held_out", type=int, default=2, help="episodes of each recording that are not trained on")
    flags.add_argument("--encoder_steps", type=int, default=500)
    flags.add_argument("--latent_action_steps", type=int, default=1000)
    flags.add_argument("--windows", type=int, default=256, help="at most so many of each recording are measured")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/recordings"))
    flags.add_argument("--toy", action="store_true", help="two short recordings and two steps: shows that it runs")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if flags.parse_known_args(arguments)[0].toy:
        flags.set_defaults(recordings=["rt1", ACTION_FREE], limit=3, encoder_steps=2, latent_action_steps=2, windows=8)
    options = flags.parse_args(arguments)
    if not options.data.is_dir():
        flags.error(f"there is no {options.data}: name the recordings' folder with --data or WAMKIT_TEST_DATA")
    return options


def import_all(options: argparse.Namespace) -> dict[str, Path]:
    """Each recording as LeRobotDataset v3; what was imported before is kept."""
    roots = {}
    for name in options.recordings:
        root = roots[name] = options.output_dir / "imported" / name
        finished = root.with_suffix(".imported")
        if finished.exists():
            continue
        source, embodiment = options.data / name, None
        if name == ACTION_FREE:
            source, embodiment = cut(source, options.output_dir / "segments" / name), "droid"
        with progress_bar(f"importing {name}") as progress:
            summary = import_recording(
                source,
                root,
                embodiment=embodiment,
                limit=options.limit,
                skip_broken=name == "unitree_g1",  # 88 of its 100 videos are not there
                resume=root.exists(),
                progress=progress,
            )
        finished.write_text(f"{summary}\n")
    return roots


def cut(source: Path, folder: Path) -> Path:
    """One long synchronised video as short episodes with gaps between them, so that some can be held out."""
    for path in sorted(source.glob("*.mp4")):
        writers: dict[int, Any] = {}
        for seconds, frame in iterate_frames(path):
            number, offset = divmod(seconds + 1e-6, SEGMENT_S)
            if offset > SEGMENT_S - GAP_S:
                continue
            if number not in writers:
                part = folder / f"{int(number):02d}" / path.name
                part.parent.mkdir(parents=True, exist_ok=True)
                container = av.open(str(part), "w")
                with av.open(str(path)) as read:
                    rate = read.streams.video[0].average_rate
                stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                writers[number] = (container, stream)
            container, stream = writers[number]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        for container, stream in writers.values():
            container.mux(stream.encode())
            container.close()
    return folder


def config_of(options: argparse.Namespace, roots: dict[str, Path]) -> TrainConfig:
    """The recipe on these recordings."""
    recipe = lawam_recordings()

    def stage(given: StageConfig) -> StageConfig:
        steps = getattr(options, f"{given.name}_steps")
        given = dataclasses.replace(given, steps=steps, warmup_steps=min(given.warmup_steps, steps // 2))
        return dataclasses.replace(given, batch_size=8) if options.toy else given

    dataset = dataclasses.replace(
        recipe.dataset,
        roots=tuple(str(root) for root in roots.values()),
        cameras=tuple(((CAMERA, PRIMARY_VIEWS[name]),) for name in roots),
        weights=(1.0,) * len(roots),
        holdout_episodes=options.held_out,
    )
    return dataclasses.replace(
        recipe,
        dataset=dataset,
        stages=tuple(stage(given) for given in recipe.stages),
        seed=options.seed,
        output_dir=str(options.output_dir / "run"),
        logger="none",
        validation_batches=2,
        resume=True,
    )


@torch.no_grad()
def measure(
    model: WorldActionModel, config: TrainConfig, root: Path, name: str, held: bool, limit: int
) -> dict[str, Any]:
    """Errors of LaWM and of copy-the-present on windows of one recording's held-out (or trained) episodes."""
    source, spec = LeRobotSource(root), config.stages[-1].window
    camera = PRIMARY_VIEWS[name]
    store = FrameStore.build(source, Path(config.output_dir) / "cache", (camera,), spec.resolution)
    episodes = holdout_split(len(source.episodes), config.dataset.holdout_episodes)[held]
    entry = MixtureEntry(source=source, frame_store=store, camera_map={CAMERA: camera}, episodes=episodes)
    mixture = Mixture([entry], dataclasses.replace(spec, feature_views=0), None, config.seed)
    draws = np.arange(min(limit, len(mixture)))
    windows = [mixture.window(draws[first : first + BATCH]) for first in range(0, len(draws), BATCH)]
    found = encode_held_out(model, windows, mixture.locate(draws)[1])
    present, future, latent = found.features[:, 0], found.features[:, 1], found.latent_actions[:, 0]

    def predict(features: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        return as_numpy(model.predict(torch.from_numpy(features), torch.from_numpy(conditions)))

    scale = found.scale
    error, copy = scale.error(predict(present, latent), future), scale.error(present, future)
    ratio, interval = ratio_interval(error, copy, found.episodes)
    listens = action_dependence(predict, present, latent, future, scale, found.episodes)
    return {
        "horizon_s": float(found.horizon_s[0]),
        "error": float(error.mean()),
        "copy_present": float(copy.mean()),
        "ratio": ratio,
        "ratio_ci95": list(interval),
        "latent_action_shuffled": listens["ratio"],
        "windows": len(error),
        "episodes": len(np.unique(found.episodes)),
        "errors": (error, copy, found.episodes),
    }


def pooled(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every recording counts alike, every held-out episode is a unit of the bootstrap."""
    error, copy, episodes, first = [], [], [], 0
    for row in rows.values():
        own_error, own_copy, own_episodes = row.pop("errors")
        error.append(own_error / own_copy.sum())
        copy.append(own_copy / own_copy.sum())
        episodes.append(np.unique(own_episodes, return_inverse=True)[1] + first)
        first += row["episodes"]
    ratio, interval = ratio_interval(np.concatenate(error), np.concatenate(copy), np.concatenate(episodes))
    return {"ratio": ratio, "ratio_ci95": list(interval), "episodes": first}


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    config = config_of(options, import_all(options))
    started = time.monotonic()
    with progress_bar("training") as progress:
        checkpoint = train(config, progress=progress)
    seconds = time.monotonic() - started
    model = load(checkpoint, device="cpu", precision="fp32").model
    rows: dict[str, dict[str, dict[str, Any]]] = {"held_out": {}, "trained": {}}
    for name, root in zip(options.recordings, map(Path, config.dataset.roots), strict=True):
        rows["held_out"][name] = measure(model, config, root, name, True, options.windows)
        if options.limit is None:
            rows["trained"][name] = measure(model, config, root, name, False, options.windows)
    described = {key: str(value) for key, value in vars(options).items() if key not in ("data", "output_dir", "json")}
    result = {
        "benchmark": "recordings",
        "toy": options.toy,
        **{part: {"overall": pooled(measured), "recordings": measured} for part, measured in rows.items() if measured},
        "train_seconds": round(seconds, 1),
        "provenance": collect(checkpoint=checkpoint, config=config.to_dict(), seeds=[options.seed], options=described),
    }
    write_json(options.output_dir / "result.json", result)
    for name, row in rows["held_out"].items():
        low, high = row["ratio_ci95"]
        print(
            f"{name:18s} {row['horizon_s']:.2f} s ahead: error {row['error']:.3f}, copy-the-present "
            f"{row['copy_present']:.3f}, ratio {row['ratio']:.2f} [{low:.2f}, {high:.2f}], {row['episodes']} episodes"
        )
    overall = result["held_out"]["overall"]
    low, high = overall["ratio_ci95"]
    print(
        f"{'all, each alike':18s} ratio {overall['ratio']:.2f} [{low:.2f}, {high:.2f}], {overall['episodes']} episodes"
    )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
