"""Which latent action says most about the robot's action? RepWAM's open choices, LaWAM's model and simple controls.

RepWAM's text leaves open how q turns two grids into four numbers (pooling), how f speaks for every token (emission),
how the token-mixing matrix K is made small and whether its rows are normalised (mixing), and what is asked of the
reversed pair (consistency). Each is changed alone, from one base, on pairs of frames in a frozen tokenizer's space. All
models are trained on the same pairs, in the same order, for equally many steps; none sees an action. Then, on episodes
that were not trained on, a ridge regression cross-validated by episode reads the robot's mean action over the interval,
and its end effector's displacement, from the latent action (`wamkit.evaluation.probes`).

Beside them: LaWAM's latent-action model with equally many numbers; a random projection of the frames' difference and
its leading principal components, without training; and the whole difference, as the bound of what is linear in it.

    python benchmarks/latent_actions.py --tokenizers NAME=CHECKPOINT ... --recordings DIR [--arms ...] [--json]

A tokenizer is whatever a checkpoint's model encodes frames or clips with. Finished cells are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.dynamics.base import FramePairs
from wamkit.dynamics.frame_reading import AttentionPooling, FlattenPooling, MeanPooling, TokenPooling
from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.dynamics.latent_actions import LatentDynamicsConfig, latent_dynamics
from wamkit.dynamics.linear_transition import ByToken, LinearTransitionConfig, WholeGrid
from wamkit.dynamics.token_mixing import (
    DiagonalMixing,
    FullMixing,
    IdentityMixing,
    LocalMixing,
    LowRankMixing,
    ScaledMixing,
)
from wamkit.encoders.base import ClipEncoder, VisualEncoder
from wamkit.encoders.patch_encoder import PatchEncoder, PatchEncoderConfig
from wamkit.evaluation import latent_action_metrics, world_metrics
from wamkit.evaluation.held_out import HeldOut
from wamkit.evaluation.probes import ProbeError, linear_probe
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import write_json
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.inference.policy import load
from wamkit.training.stages import holdout_split

BASE = LinearTransitionConfig()
"""The defaults, from which every arm differs in one choice."""
LAM = LatentActionConfig(
    width=128, heads=4, encoder_layers=2, decoder_layers=3, latent_width=4, max_state_dim=0, state_readout="shared"
)
"""LaWAM's `tiny`, with RepWAM's four numbers and without the state that LaWAM predicts beside the frame."""
LINEAR: dict[str, LinearTransitionConfig] = {
    "base": BASE,
    "pooling_mean": replace(BASE, pooling=MeanPooling()),
    "pooling_attention": replace(BASE, pooling=AttentionPooling()),
    "pooling_flatten": replace(BASE, pooling=FlattenPooling()),
    "pooling_by_token": replace(BASE, pooling=TokenPooling()),
    "emission_whole_grid": replace(BASE, emission=WholeGrid()),
    "emission_by_token": replace(BASE, emission=ByToken()),
    "mixing_full": replace(BASE, mixing=FullMixing()),
    "mixing_full_softmax": replace(BASE, mixing=FullMixing("softmax")),
    "mixing_low_rank": replace(BASE, mixing=LowRankMixing()),
    "mixing_low_rank_softmax": replace(BASE, mixing=LowRankMixing(rows="softmax")),
    "mixing_local": replace(BASE, mixing=LocalMixing()),
    "mixing_local_softmax": replace(BASE, mixing=LocalMixing(rows="softmax")),
    "mixing_diagonal": replace(BASE, mixing=DiagonalMixing()),
    "mixing_scaled": replace(BASE, mixing=ScaledMixing()),
    "mixing_identity": replace(BASE, mixing=IdentityMixing()),
    "consistency_reversed": replace(BASE, consistency="reversed"),
    "consistency_round_trip": replace(BASE, consistency="round_trip"),
    "consistency_antisymmetric": replace(BASE, consistency="antisymmetric"),
    "consistency_none": replace(BASE, consistency="none"),
}
CONTROLS = ("random_projection", "principal_components", "whole_difference")


def arms() -> dict[str, LatentDynamicsConfig | None]:
    """Every arm with its config; a choice that the base makes already is not run twice. None: nothing is trained."""
    models: dict[str, LatentDynamicsConfig | None] = {}
    for name, config in LINEAR.items():
        if name == "base" or config != BASE:
            models[name] = config
    return models | {"lawam_lam": LAM} | dict.fromkeys(CONTROLS)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tokenizers", nargs="+", default=[], metavar="NAME=CHECKPOINT")
    flags.add_argument("--recordings", type=Path, default=None, help="a LeRobotDataset v3 with states and actions")
    flags.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()))
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    flags.add_argument("--steps", type=int, default=1000)
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--learning_rate", type=float, default=3e-3)
    flags.add_argument("--horizon_s", type=float, default=0.2, help="between the two frames of a pair")
    flags.add_argument("--every_s", type=float, default=0.025, help="between the starts of pairs")
    flags.add_argument("--held_out", type=int, default=15, help="episodes that are not trained on")
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/latent_actions"))
    flags.add_argument("--toy", action="store_true", help="two steps on a synthetic recording: shows that it runs")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if flags.parse_known_args(arguments)[0].toy:
        flags.set_defaults(seeds=[0], steps=2, batch=4, held_out=3, horizon_s=0.4, every_s=0.1)
    options = flags.parse_args(arguments)
    if not options.toy and not (options.tokenizers and options.recordings):
        flags.error("name a tokenizer's checkpoint (--tokenizers NAME=CHECKPOINT) and recordings (--recordings DIR)")
    if any("=" not in entry for entry in options.tokenizers):
        flags.error("a tokenizer is given as NAME=CHECKPOINT")
    return options


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames in a tokenizer's space, and what the robot did between them."""

    features: np.ndarray
    """float16 [n, 2, N, D]."""
    motion: np.ndarray
    """Of the end effector, [n, 3]."""
    action: np.ndarray
    """Mean over the interval, [n, A]."""
    episodes: np.ndarray
    tasks: np.ndarray
    grid: tuple[int, int]

    def of(self, episodes: Sequence[int]) -> Pairs:
        """Those of some episodes."""
        keep = np.isin(self.episodes, list(episodes))
        return replace(self, **{k: v[keep] for k, v in vars(self).items() if isinstance(v, np.ndarray)})


@dataclass(frozen=True)
class Tokenizer:
    """A frozen encoder of frames, or of clips."""

    encode: VisualEncoder | ClipEncoder
    cameras: tuple[str, ...]
    resolution: int | Sequence[int]
    pictures: int
    """1: a frame is encoded alone. 9: of a clip of three latent frames, the last two are the pair."""
    held: bool = False
    """Whether the four pictures of a latent frame are its last one four times over."""

    def offsets(self, tau: float) -> list[float]:
        """Seconds from a clip's first picture to each."""
        frames = (self.pictures - 1) // 4
        return [0.0, *(tau * (f + (1.0 if self.held else (i + 1) / 4)) for f in range(frames) for i in range(4))]

    def grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns."""
        if isinstance(self.encode, VisualEncoder):
            return self.encode.grid
        canvas = cast(Any, self.encode).canvas
        rows = round(math.sqrt(tokens * canvas.height / canvas.width))
        return rows, tokens // rows


def tokenizer_of(checkpoint: Path | None, source: LeRobotSource) -> Tokenizer:
    """What a checkpoint's model encodes with; a small encoder of random weights where there is no checkpoint."""
    if checkpoint is None:
        encoder = PatchEncoder(PatchEncoderConfig(resolution=32, patch=8, width=16, layers=1, heads=2))
        return Tokenizer(encoder.eval(), source.cameras[:1], 32, 1)
    model = load(checkpoint, device="cpu").model.eval()
    stage = model.stages[-1]
    frames, clips = model.visual_encoder(stage), model.clip_encoder(stage)
    if frames is not None:
        return Tokenizer(frames, tuple(model.config.cameras[:1]), frames.resolution, 1)
    if clips is None:
        raise SystemExit(f"the model of {checkpoint} has no frozen encoder of frames or clips")
    config = cast(Any, model.config)
    return Tokenizer(clips, clips.cameras, config.resolution, 9, held=getattr(config, "pictures", "each") == "held")


@torch.no_grad()
def encoded(tokenizer: Tokenizer, source: LeRobotSource, options: argparse.Namespace) -> Pairs:
    """Every pair of the recording; kept in a file, since encoding takes longest."""
    key = (
        f"{tokenizer.encode.weights_hash()[:12]}-{source.fingerprint()[:12]}-{options.horizon_s:g}-{options.every_s:g}"
    )
    file = options.output_dir / "pairs" / f"{key}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            values = dict(stored)
        return Pairs(**values | {"grid": tuple(int(side) for side in values["grid"])})
    store = FrameStore.build(source, options.output_dir / "cache", tokenizer.cameras, tokenizer.resolution)
    state, action = source.column("observation.state"), source.column("action")
    found: dict[str, list[Any]] = {name: [] for name in ("features", "motion", "action", "episodes", "tasks")}
    tau = options.horizon_s
    # A frame's pair begins where it is; a clip's, four pictures after its first, which is encoded by itself.
    begin = 0.0 if tokenizer.pictures == 1 else tau
    for episode in source.episodes:
        rows = state[episode.rows], action[episode.rows]
        last = (episode.length - 1) / source.fps - tau - begin
        for start in np.arange(0.0, last + 1e-9, options.every_s):
            first, second = (round((start + begin + offset) * source.fps) for offset in (0.0, tau))
            found["motion"].append(rows[0][second, :3] - rows[0][first, :3])
            found["action"].append(rows[1][first:second].mean(axis=0))
            found["episodes"].append(episode.index)
            found["tasks"].append(episode.task)
        starts = np.arange(0.0, last + 1e-9, options.every_s)
        for part in np.array_split(starts, max(1, math.ceil(len(starts) / 32))):
            if len(part):
                found["features"].append(_features(tokenizer, store, episode.index, part, tau))
    features = np.concatenate(found.pop("features"))
    pairs = Pairs(
        features=features,
        grid=tokenizer.grid(features.shape[2]),
        **{name: np.asarray(values) for name, values in found.items()},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.with_suffix(".part")).open("wb") as opened:
        np.savez(opened, **{**vars(pairs), "grid": np.array(pairs.grid)})
    file.with_suffix(".part").replace(file)
    return pairs


def _features(tokenizer: Tokenizer, store: FrameStore, episode: int, starts: np.ndarray, tau: float) -> np.ndarray:
    def pictures(camera: str, offsets: Sequence[float]) -> Tensor:
        times = (starts[:, None] + np.asarray(offsets)).ravel()
        return store.frames(camera, episode, times)[0].unflatten(0, (len(starts), len(offsets)))

    if tokenizer.pictures == 1:
        frames = pictures(tokenizer.cameras[0], (0.0, tau))
        features = cast(VisualEncoder, tokenizer.encode)(frames.flatten(0, 1)).unflatten(0, (len(starts), 2))
    else:
        clips = {camera: pictures(camera, tokenizer.offsets(tau)) for camera in tokenizer.cameras}
        features = cast(ClipEncoder, tokenizer.encode)(clips)[:, -2:]
    return features.float().numpy().astype(np.float16)


# Latent actions


@dataclass(frozen=True)
class Learnt:
    """A latent action: how it is inferred, and how it steps (a control has no step)."""

    infer: Callable[[np.ndarray, np.ndarray], np.ndarray]
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    parameters: int = 0


def control(name: str, pairs: Pairs, seed: int) -> Learnt:
    """Four numbers of the difference of two frames without any training, or all of it."""

    def difference(present: np.ndarray, future: np.ndarray) -> np.ndarray:
        return (future.astype(np.float32) - present.astype(np.float32)).reshape(len(present), -1)

    if name == "whole_difference":
        return Learnt(lambda present, future: difference(present, future)[:, None], None)
    seen = difference(pairs.features[:, 0], pairs.features[:, 1])
    if name == "random_projection":
        matrix = np.random.default_rng(seed).normal(size=(seen.shape[1], 4)).astype(np.float32)
    else:
        matrix = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)[2][:4].T
    return Learnt(lambda present, future: (difference(present, future) @ matrix)[:, None], None)


def learnt(config: LatentDynamicsConfig, pairs: Pairs, seed: int, options: argparse.Namespace) -> Learnt:
    """A latent-action model trained on the pairs."""
    torch.manual_seed(seed)
    model = latent_dynamics(config, pairs.grid, pairs.features.shape[-1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    warm_up = max(1, options.steps // 20)

    def share(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / options.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for _ in range(options.steps):
        batch = torch.from_numpy(pairs.features[rng.integers(0, len(pairs.features), options.batch)]).float()
        valid = torch.ones(len(batch), dtype=torch.bool)
        losses = model.losses(FramePairs(present=batch[:, 0], future=batch[:, 1], valid=valid), generator)
        optimizer.zero_grad()
        torch.stack([term.weight * term.mean() for term in losses.terms.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()

    @torch.no_grad()
    def pieces(function: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
        parts = (tuple(torch.from_numpy(np.array(a[i : i + 64])).float() for a in arrays) for i in _starts(arrays[0]))
        return torch.cat([function(*part) for part in parts]).numpy()

    return Learnt(
        infer=lambda present, future: pieces(lambda a, b: model.infer(a, b).mean, present, future),
        predict=lambda present, latent: pieces(model.decoder, present, latent),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _starts(array: np.ndarray) -> range:
    return range(0, len(array), 64)


def measured(found: Learnt, pairs: Pairs, horizon_s: float) -> dict[str, Any]:
    """Probes and, where the latent action steps, what its step is worth; on held-out pairs."""
    latent = found.infer(pairs.features[:, 0], pairs.features[:, 1])
    flat = latent.reshape(len(latent), -1)
    row: dict[str, Any] = {"parameters": found.parameters, "n": len(flat)}
    for name, target in (("action", pairs.action), ("motion", pairs.motion)):
        try:
            probe = linear_probe(flat, target, pairs.episodes)
        except ProbeError as reason:
            row[name] = {"reason": str(reason)}
        else:
            row[name] = {"r2": probe.r2, "ci95": list(probe.ci95), "control": probe.control}
    if found.predict is None:
        return row
    held_out = HeldOut(
        windows=cast(Any, (SimpleNamespace(task=tuple(pairs.tasks.tolist())),)),
        episodes=pairs.episodes,
        features=pairs.features.astype(np.float32),
        frames=np.zeros((len(flat), 2, 1, 1, 3), np.uint8),
        horizon_s=np.array([horizon_s]),
        latent_actions=latent[:, None],
        dropped=0,
        grid=pairs.grid,
    )
    predict, infer = found.predict, found.infer
    present, future, scale = held_out.present, held_out.future, held_out.scale
    more: dict[str, Callable[[], Mapping[str, Any]]] = {
        "step": lambda: world_metrics.feature_error(
            predict(present, latent)[:, None],
            future[:, None],
            present,
            held_out.horizon_s,
            scale,
            pairs.episodes,
        ),
        "wrong": lambda: world_metrics.action_dependence(predict, present, latent, future, scale, pairs.episodes),
        "effect_region": lambda: latent_action_metrics.effect_region(predict, held_out),
        "transfer": lambda: latent_action_metrics.transfer(predict, infer, held_out),
    }
    for name, make in more.items():
        try:
            row[name] = dict(make())
        except WorldMetricsError as reason:
            row[name] = {"reason": str(reason)}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    if options.recordings is None:
        options.recordings = options.output_dir / "synthetic"
        if not options.recordings.exists():
            task = ("push the disc", "pull the disc")
            make_synthetic_dataset(options.recordings, episodes=8, length=12, resolution=(32, 32), task=task)
    source = LeRobotSource(options.recordings)
    named: dict[str, Path | None] = {
        name: Path(path) for name, _, path in (entry.partition("=") for entry in options.tokenizers)
    } or {"random_weights": None}
    trained, held_out = holdout_split(len(source.episodes), options.held_out)
    configs, results, described = arms(), {}, {}
    for name, checkpoint in named.items():
        torch.manual_seed(0)
        tokenizer = tokenizer_of(checkpoint, source)
        pairs = encoded(tokenizer, source, options)
        described[name] = {
            "grid": list(pairs.grid),
            "width": pairs.features.shape[-1],
            "pairs": len(pairs.of(trained).features),
            "checkpoint": None if checkpoint is None else checkpoint_record(checkpoint),
        }
        fit, judged = pairs.of(trained), pairs.of(held_out)
        settings = (
            f"{tokenizer.encode.weights_hash()[:12]}-{source.fingerprint()[:12]}-{options.held_out}-{options.steps}x"
            f"{options.batch}-{options.learning_rate:g}-{options.horizon_s:g}-{options.every_s:g}"
        )
        results[name] = {arm: {} for arm in options.arms}
        for seed in options.seeds:
            for arm in options.arms:
                config = configs[arm]
                cell = options.output_dir / "cells" / settings / arm / f"seed{seed}.json"
                said = None if config is None else repr(config)
                stored = json.loads(cell.read_text()) if cell.is_file() else None
                if stored is None or stored["config"] != said:
                    begun = time.process_time()
                    found = control(arm, fit, seed) if config is None else learnt(config, fit, seed, options)
                    row = measured(found, judged, options.horizon_s)
                    stored = {"config": said, "row": row | {"processor_s": time.process_time() - begun}}
                    write_json(cell, stored)
                results[name][arm][str(seed)] = stored["row"]
                shown = [stored["row"][probe].get("r2", math.nan) for probe in ("action", "motion")]
                print(f"{name}, seed {seed}, {arm:26s} R2 action {shown[0]:6.3f}, motion {shown[1]:6.3f}", flush=True)
    # What was measured on is told by digests; paths are nobody else's business.
    left_out = ("output_dir", "json", "recordings", "tokenizers")
    kept = {key: value for key, value in vars(options).items() if key not in left_out}
    kept["recording"] = source.fingerprint()
    result = {
        "benchmark": "latent_actions",
        "toy": options.toy,
        "tokenizers": described,
        "results": results,
        "base": dataclasses.asdict(BASE)
        | {name: getattr(BASE, name).kind for name in ("pooling", "emission", "mixing")},
        "held_out_episodes": len(held_out),
        "provenance": collect(config=kept, seeds=options.seeds, options=kept),
    }
    write_json(options.output_dir / "result.json", result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
