"""What does a visual tokenizer keep: of the pictures, and of the actions between them?

Each tokenizer is trained alike on the training episodes of one recording (RepWAM's own stages `encoder` and
`tokenizer`), or taken from a checkpoint, and measured on the held-out episodes: reconstruction (PSNR, SSIM; rFID and
rFVD where a network's weights are named) and a linear probe from two consecutive latent frames to the action between
them (R2, and the share of steps read within 0.03 of the action's range of two; `wamkit.evaluation.action_probe`).

    repvitok                  aligned with a representation encoder, as the paper has it
    repvitok_reconstruction   its twin without alignment
    repvitok_scrambled        aligned with another clip's features, their places dealt anew
    wan_vae                   a causal video VAE of Wan's class
    representation            the representation encoder itself, picture by picture
    random_weights            RepViTok untrained
    dinov3, wan21_vae, wan22_vae   with published weights, from the hub's cache or from --weights; not by default
    NAME=CHECKPOINT[:PART]    of a trained model of any kind; PART is its attribute (tokenizer, vae, vision_encoder)

    wam bench tokenizer --root RECORDING [--tokenizers repvitok wan_vae mine=outputs/run] [--steps N] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.cli.progress import progress_bar
from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import MixtureEntry, WindowSpec
from wamkit.encoders.base import VideoTokenizer, VisualEncoder
from wamkit.errors import WamkitError, suggest
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import write_json
from wamkit.evaluation.tokenizer_report import FrechetNetworks, HeldOutClips, table, tokenizer_report
from wamkit.evaluation.tokenizer_source import PUBLISHED, load_part, load_published
from wamkit.models import registry
from wamkit.models.repwam.config import RepWAMConfig
from wamkit.models.repwam.model import RepWAM
from wamkit.models.tokenizer_variants import TOKENIZERS, with_tokenizer
from wamkit.training.checkpoint import WEIGHTS, load_weights
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig
from wamkit.training.loop import train
from wamkit.training.stages import holdout_split

NAMES = (*TOKENIZERS, "representation", "random_weights")
BATCH = 16


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--root", type=Path, default=None, help="LeRobot data set; --toy makes one")
    flags.add_argument("--tokenizers", nargs="+", default=list(NAMES), metavar="NAME[=CHECKPOINT[:PART]]")
    flags.add_argument("--weights", nargs="+", default=[], metavar="NAME=FOLDER", help="of published ones")
    flags.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    flags.add_argument("--camera", default=None, help="default the preset's, or the recording's only one")
    flags.add_argument("--resolution", type=int, default=None, help="side in pixels; default the preset's")
    flags.add_argument("--frame_s", type=float, default=None, help="seconds of a latent frame; default the preset's")
    flags.add_argument("--pictures", choices=("each", "held"), default=None, help="see CausalModelConfig.pictures")
    flags.add_argument("--training_frames", type=int, default=2, help="latent frames after the first of a clip")
    flags.add_argument("--steps", type=int, default=600, help="of each tokenizer")
    flags.add_argument("--encoder_steps", type=int, default=400, help="of the representation encoder")
    flags.add_argument("--batch_size", type=int, default=8, help="clips; on a CPU one costs the VAE five times as much")
    flags.add_argument("--learning_rate", type=float, default=1e-3)
    flags.add_argument("--perceptual_network", default=None, help="file of torchvision's VGG16; none: that term is off")
    flags.add_argument("--held_out", type=int, default=10, help="episodes to measure on, evenly spread")
    flags.add_argument("--windows", type=int, default=384, help="at most so many held-out clips")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    flags.add_argument("--fid_network", type=Path, default=None, help="TorchScript Inception, for rFID")
    flags.add_argument("--fvd_network", type=Path, default=None, help="TorchScript I3D, for rFVD")
    flags.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/tokenizer"))
    flags.add_argument("--toy", action="store_true", help="two steps on made-up episodes: shows that it runs")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if flags.parse_known_args(arguments)[0].toy:
        flags.set_defaults(steps=2, encoder_steps=2, batch_size=2, held_out=3, windows=24, seeds=[0], resolution=32)
    options = flags.parse_args(arguments)
    for given in options.tokenizers:
        if "=" not in given and given not in (*NAMES, *PUBLISHED):
            flags.error(f"no tokenizer {given!r}.{suggest(given, (*NAMES, *PUBLISHED))}")
    options.weights = dict(given.partition("=")[::2] for given in options.weights)
    for name in options.weights:
        if name not in PUBLISHED:
            flags.error(f"--weights names {name!r}.{suggest(name, PUBLISHED)}")
    if options.root is None and not options.toy:
        flags.error("name a recording with --root (wam record makes one), or say --toy")
    return options


def base_config(options: argparse.Namespace, source: LeRobotSource) -> RepWAMConfig:
    """RepWAM's preset, looking through this recording's camera at this size."""
    config = registry.model_class("repwam").preset(options.preset)
    camera = options.camera or (config.cameras[0] if config.cameras[0] in source.cameras else None)
    if camera is None and len(source.cameras) == 1:
        (camera,) = source.cameras
    if camera not in source.cameras:
        raise WamkitError(
            f"{source.root} has no camera {camera or config.cameras[0]!r}: choose with --camera one of"
            f" {', '.join(source.cameras)}."
        )
    tokenizer, side = config.tokenizer, options.resolution or config.resolution[0]
    wanted = options.perceptual_network is not None
    objective = dataclasses.replace(
        tokenizer.objective,
        perceptual_network=options.perceptual_network,
        perceptual_weight=1.0 if wanted else tokenizer.objective.perceptual_weight,
    )
    return dataclasses.replace(
        config,
        tokenizer=dataclasses.replace(tokenizer, objective=objective),
        representation=dataclasses.replace(config.representation, resolution=side),
        cameras=(camera,),
        resolution=(side, side),
        frame_s=options.frame_s or config.frame_s,
        pictures=options.pictures or config.pictures,
        training_frames=options.training_frames,
    )


def clip_spec(config: RepWAMConfig, **fields: Any) -> WindowSpec:
    return WindowSpec(
        frame_offsets_s=config.frame_offsets_s, cameras=config.cameras, resolution=config.resolution, **fields
    )


def run_of(
    options: argparse.Namespace, config: RepWAMConfig, stage: str, steps: int, seed: int, output_dir: Path
) -> TrainConfig:
    """One stage alone, as a run of its own; the same command goes on where it was stopped."""
    window, batch = clip_spec(config), options.batch_size
    if stage == "encoder":  # it sees single pictures
        window, batch = dataclasses.replace(window, frame_offsets_s=(0.0,)), 2 * batch
    return TrainConfig(
        name=f"tokenizer_{output_dir.parent.name}",
        model="repwam",
        model_config=config,
        preset=options.preset,
        dataset=DatasetConfig(
            roots=(str(options.root),),
            holdout_episodes=options.held_out,
            cache_dir=str(options.output_dir / "cache"),
        ),
        stages=(
            StageConfig(
                name=stage,
                window=window,
                steps=steps,
                batch_size=batch,
                learning_rate=options.learning_rate,
                betas=(0.9, 0.95),
                warmup_steps=min(30, steps // 2),
            ),
        ),
        seed=seed,
        output_dir=str(output_dir),
        device=options.device,
        save_every=200,
        logger="none",
        resume=True,
    )


def trained(
    options: argparse.Namespace,
    config: RepWAMConfig,
    stage: str,
    steps: int,
    seed: int,
    folder: str,
    encoder: Path | None,
) -> Path:
    """The checkpoint of one stage; with ``encoder``, the representation is that checkpoint's."""

    def build(run: TrainConfig) -> RepWAM:
        model = RepWAM(run.model_config)
        if encoder is not None and model.representation is not None:
            prefix = "representation."
            stored = {name: value for name, value in load_weights(encoder / WEIGHTS).items() if name.startswith(prefix)}
            model.representation.load_state_dict({name.removeprefix(prefix): value for name, value in stored.items()})
        return model

    run = run_of(options, config, stage, steps, seed, options.output_dir / folder / f"seed{seed}")
    with progress_bar(f"{folder}, seed {seed}") as progress:
        return train(run, build_model=build, progress=progress)


def held_out_clips(options: argparse.Namespace, config: RepWAMConfig, source: LeRobotSource) -> HeldOutClips:
    """Clips of the held-out episodes, with actions in [-1, 1] over the training episodes."""
    store = FrameStore.build(source, options.output_dir / "cache", config.cameras, config.resolution)
    learned, kept = holdout_split(len(source.episodes), options.held_out)
    actions = source.action_names is not None
    spec = clip_spec(config, past_end="drop", chunk_s=config.sequence_s if actions else None)
    entries = [MixtureEntry(source=source, frame_store=store, episodes=chosen) for chosen in (learned, kept)]
    normalizer = fit_normalizer(entries[:1], action_mode="MIN_MAX")
    mixture = Mixture(entries[1:], spec, normalizer, seed=0)
    draws = np.arange(min(options.windows, len(mixture)))
    windows = [mixture.window(draws[first : first + BATCH]) for first in range(0, len(draws), BATCH)]
    return HeldOutClips.of(windows, mixture.locate(draws)[1], config.cameras[0])


def modules_of(
    options: argparse.Namespace, config: RepWAMConfig, seed: int
) -> dict[str, tuple[VideoTokenizer | VisualEncoder, dict[str, Any]]]:
    """Each tokenizer that was asked for, and where it comes from."""
    found: dict[str, tuple[VideoTokenizer | VisualEncoder, dict[str, Any]]] = {}
    variants = [with_tokenizer(config, name) for name in options.tokenizers if name in TOKENIZERS]
    encoder = None
    if "representation" in options.tokenizers or any(variant.representation is not None for variant in variants):
        encoder = trained(options, config, "encoder", options.encoder_steps, seed, "encoder", None)
    for given in options.tokenizers:
        name, _, checkpoint = given.partition("=")
        started = time.perf_counter()
        if checkpoint:
            path, _, part = checkpoint.partition(":")
            module, origin = load_part(path, part or None), {"checkpoint": checkpoint_record(Path(path))["sha256"]}
        elif name in PUBLISHED:
            published = PUBLISHED[name]()
            if name in options.weights:
                published = dataclasses.replace(published, weights=options.weights[name])
            if hasattr(published, "resolution"):
                published = dataclasses.replace(published, resolution=config.resolution[0])
            module, origin = load_published(published), {"published": True}
        elif name == "representation":
            assert encoder is not None
            module, origin = load_part(encoder, "representation"), {"steps": options.encoder_steps}
        elif name == "random_weights":
            torch.manual_seed(seed)
            module, origin = RepWAM(config).tokenizer, {"steps": 0}
        else:
            path = trained(options, with_tokenizer(config, name), "tokenizer", options.steps, seed, name, encoder)
            module, origin = load_part(path), {"steps": options.steps}
        size = sum(p.numel() for p in module.parameters())
        found[name] = module.eval(), {**origin, "parameters": size, "seconds": time.perf_counter() - started}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    if options.root is None:
        options.root = options.output_dir / "made_up"
        if not options.root.exists():
            make_synthetic_dataset(options.root, episodes=6, length=24, fps=20, resolution=(32, 32))
    source = LeRobotSource(options.root)
    config = base_config(options, source)
    clips = held_out_clips(options, config, source)
    networks = FrechetNetworks(pictures=options.fid_network, videos=options.fvd_network)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    tokenizers: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        rows = {}
        for name, (module, origin) in modules_of(options, config, seed).items():
            rows[name] = tokenizer_report(
                module.to(device), clips, action_names=source.action_names, networks=networks, seed=0
            )
            rows[name]["origin"] = origin
            tokenizers.setdefault(name, {})[str(seed)] = rows[name]
        print(f"seed {seed}, {clips.clips.shape[0]} clips of {len(np.unique(clips.episodes))} held-out episodes")
        print("\n".join(table(rows)))
    every = [row for seeds in tokenizers.values() for row in seeds.values()]
    missing = {(name, reason) for row in every for name, reason in row["not_measured"].items()}
    print("\n".join(f"not measured: {name} ({reason})" for name, reason in sorted(missing)))
    hidden = ("output_dir", "json", "root", "weights", "fid_network", "fvd_network")
    described = {key: value for key, value in vars(options).items() if key not in hidden}
    result = {
        "benchmark": "tokenizer",
        "toy": options.toy,
        "tokenizers": tokenizers,
        "recording": {"episodes": len(source.episodes), "fps": source.fps, "tasks": sorted(set(_tasks(source)))},
        "perceptual": options.perceptual_network is not None,
        "provenance": collect(config=described, seeds=options.seeds, options=described),
    }
    print(write_json(options.output_dir / "result.json", result))
    if options.json:
        print(json.dumps(result))


def _tasks(source: LeRobotSource) -> list[str]:
    return [episode.task for episode in source.episodes]


if __name__ == "__main__":
    main()
