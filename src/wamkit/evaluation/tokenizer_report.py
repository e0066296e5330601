"""What a visual tokenizer keeps: of the pictures, and of what was done between them, on held-out clips.

The same numbers for a video tokenizer and for a frozen encoder of single pictures. Of the latter the pictures at the
latent frames' ends are read, since it has no latent frames; and as it decodes nothing, its reconstruction is not
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.encoders.base import VideoTokenizer, VisualEncoder
from wamkit.evaluation.action_probe import action_probe, actions_of_steps
from wamkit.evaluation.frechet import frechet_distance, load_network, picture_features, video_features
from wamkit.evaluation.imagined_video import psnr, ssim
from wamkit.evaluation.probes import ProbeError
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.world_metrics import WorldMetricsError, ratio_interval
from wamkit.types import Window

PICTURES = VideoTokenizer.TEMPORAL


@dataclass(frozen=True)
class FrechetNetworks:
    """TorchScript files of the networks behind FID and FVD; None: not at hand."""

    pictures: Path | None = None
    videos: Path | None = None


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of held-out episodes on the host, and what was done between their latent frames."""

    clips: UInt8[Tensor, "n T 3 H W"]
    actions: Float[np.ndarray, "n G A"] | None
    """Normalised; None for recordings without actions."""
    episodes: np.ndarray

    @classmethod
    def of(cls, windows: Sequence[Window], episodes: Sequence[int] | np.ndarray, camera: str) -> HeldOutClips:
        """Those windows that have all their frames.

        Args:
            windows: Batches whose frames are the clip and whose chunk is as long as the clip.
            episodes: Episode of each window over all batches.
            camera: Which view.

        Raises:
            WorldMetricsError: no window is whole, or the windows have no such camera.
        """
        episodes, count = np.asarray(episodes), sum(window.batch_size for window in windows)
        if count != len(episodes):
            raise WorldMetricsError(
                f"There are {len(episodes)} episode numbers and {count} windows: give one for each."
            )
        clips, actions, kept, seen = [], [], [], 0
        for window in windows:
            if camera not in window.frames:
                raise WorldMetricsError(f"The windows have no camera {camera!r}: they have {', '.join(window.frames)}.")
            whole = window.frame_valid[camera].all(dim=1)
            numbers = episodes[seen : seen + window.batch_size]
            seen += window.batch_size
            clips.append(window.frames[camera][whole].cpu())
            kept.append(numbers[whole.numpy()])
            if window.actions.shape[1] and bool(window.action_valid.any()):
                times = (window.action_times, window.frame_times)
                chunk, at, shown = (value[whole].cpu().numpy() for value in (window.actions, *times))
                actions.append(actions_of_steps(chunk, at, shown, PICTURES))
        if not sum(map(len, clips)):
            raise WorldMetricsError("No held-out window has all its frames: hold out longer episodes.")
        return cls(
            clips=torch.cat(clips),
            actions=np.concatenate(actions) if len(actions) == len(clips) else None,
            episodes=np.concatenate(kept),
        )


@torch.no_grad()
def latents_of(module: VideoTokenizer | VisualEncoder, clip: UInt8[Tensor, "B T 3 H W"]) -> Float[Tensor, "B F N C"]:
    """Latent frames cell by cell; of an encoder of single pictures, the features of each latent frame's last one."""
    if isinstance(module, VideoTokenizer):
        return module.encode(clip).flatten(3).permute(0, 2, 3, 1)
    ends = clip[:, ::PICTURES]
    return module(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])


@torch.no_grad()
def tokenizer_report(
    module: VideoTokenizer | VisualEncoder,
    held_out: HeldOutClips,
    *,
    action_names: Sequence[str] | None = None,
    networks: FrechetNetworks | None = None,
    batch: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Reconstruction and action probe of one tokenizer.

    Args:
        module: On its device.
        held_out: Clips that it was not trained on.
        action_names: For the probe.
        networks: Behind rFID and rFVD.
        batch: Clips encoded at once.
        seed: Fixes folds and resampling.

    Returns:
        ``latent``: ``frames``, ``cells``, ``width``, ``numbers_per_picture``. ``reconstruction``: ``psnr`` and
        ``ssim`` with ``ci95`` over episodes, and as ``first_picture`` what repeating the first picture scores on the
        later ones; ``rfid`` and ``rfvd`` where measured. ``action_probe``: see `wamkit.evaluation.action_probe`.
        ``windows``. ``not_measured``: what is missing, and why.

    Raises:
        WorldMetricsError: fewer than two held-out episodes.
    """
    module.eval()
    clips, episodes = held_out.clips, held_out.episodes
    device = next(module.parameters()).device
    pieces, made = [], []
    for clip in clips.split(batch):
        found = latents_of(module, clip.to(device))
        pieces.append(found.float().cpu())
        if isinstance(module, VideoTokenizer):
            grid = module.latent_size(*clip.shape[-2:])
            made.append(module.decode(found.permute(0, 3, 1, 2).unflatten(-1, grid)).float().cpu())
    latents = torch.cat(pieces)
    missing: dict[str, str] = {}
    result: dict[str, Any] = {"latent": _described(latents, clips)}
    if made:
        result["reconstruction"] = _reconstruction(torch.cat(made), clips, episodes, networks, missing, seed)
    else:
        missing["reconstruction"] = "this encoder of single pictures has no decoder."
    if held_out.actions is None:
        missing["action_probe"] = "the recordings have no actions."
    else:
        try:
            flat = latents.flatten(2).numpy()
            result["action_probe"] = action_probe(flat, held_out.actions, episodes, names=action_names, seed=seed)
        except ProbeError as reason:
            missing["action_probe"] = str(reason)
    counts = {"n": len(clips), "episodes": len(np.unique(episodes))}
    result |= {"windows": counts, "not_measured": missing}
    refuse_non_finite(result)
    return result


def _described(latents: Float[Tensor, "n F N C"], clips: Tensor) -> dict[str, Any]:
    _, frames, cells, width = latents.shape
    numbers = frames * cells * width / clips.shape[1]
    return {"frames": frames, "cells": cells, "width": width, "numbers_per_picture": numbers}


def _reconstruction(
    made: Float[Tensor, "n T 3 H W"],
    clips: UInt8[Tensor, "n T 3 H W"],
    episodes: np.ndarray,
    networks: FrechetNetworks | None,
    missing: dict[str, str],
    seed: int,
) -> dict[str, Any]:
    real, networks = clips.float() / 255.0, networks or FrechetNetworks()
    still = real[:, :1].expand_as(real)
    found: dict[str, Any] = {}
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        mean, ci95 = _mean(metric(made, real).mean(dim=1).numpy(), episodes, seed)
        found[name] = {"mean": mean, "ci95": list(ci95)}
        if real.shape[1] > 1:
            found[name]["first_picture"] = float(metric(still, real)[:, 1:].mean())
    shown = (made * 255.0).round().clamp(0, 255).to(torch.uint8)
    if networks.pictures is None:
        missing["rfid"] = "rFID needs Inception's weights as TorchScript, which are not at hand; nothing stands in."
    else:
        network = load_network(networks.pictures)
        found["rfid"] = frechet_distance(*(picture_features(network, x.flatten(0, 1)) for x in (shown, clips)))
    if networks.videos is None:
        missing["rfvd"] = "rFVD needs I3D's weights as TorchScript, which are not at hand; nothing stands in."
    else:
        network = load_network(networks.videos)
        found["rfvd"] = frechet_distance(*(video_features(network, x) for x in (shown, clips)))
    return found


def _mean(values: np.ndarray, episodes: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    return ratio_interval(values, np.ones(len(values)), episodes, seed=seed)


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each tokenizer, under a head; what was not measured is left empty."""
    heads = [f"{head:>{size}s}" for head, size in (("PSNR", 6), ("SSIM", 6), ("rFID", 7), ("rFVD", 7))]
    heads += [f"{head:>7s}" for head in ("R2", "<0.03", "mean")]
    lines = [f"{'tokenizer':28s} " + " ".join(heads)]
    for name, row in rows.items():
        pixels, probe = row.get("reconstruction", {}), row.get("action_probe")
        cells = [
            f"{pixels['psnr']['mean']:6.2f}" if pixels else " " * 6,
            f"{pixels['ssim']['mean']:6.3f}" if pixels else " " * 6,
            *(f"{pixels[kind]:7.2f}" if kind in pixels else " " * 7 for kind in ("rfid", "rfvd")),
            f"{probe['r2']:7.3f}" if probe else " " * 7,
            f"{100 * probe['share_within']['share']:6.1f}%" if probe else " " * 7,
            f"{100 * probe['share_within']['mean_action']:6.1f}%" if probe else " " * 7,
        ]
        lines.append(f"{name:28s} " + " ".join(cells))
    return lines
