"""Held-out windows in a model's feature space, encoded once for all metrics and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.evaluation.world_metrics import FeatureScale, WorldMetricsError
from wamkit.types import Window

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows in the model's feature space; T counts the frames after the present."""

    windows: tuple[Window, ...]
    episodes: np.ndarray
    """Episode of each window, [n]."""
    features: np.ndarray
    """[n, 1 + T, N, D]."""
    frames: np.ndarray
    """The primary view, uint8 [n, 1 + T, H, W, 3]."""
    horizon_s: np.ndarray
    """[T]."""
    latent_actions: np.ndarray | None
    """Inferred from each pair of consecutive true frames, [n, T, Q, Z]; None for a model without them."""
    dropped: int
    """Windows left out because a frame lies past the episode's end or the camera is missing."""

    @property
    def scale(self) -> FeatureScale:
        """Standardisation over all these frames."""
        return FeatureScale.fit(self.features.reshape(-1, *self.features.shape[2:]))


def model_device(model: WorldActionModel) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as float32 on the host."""
    return tensor.detach().float().cpu().numpy()


def _select(window: Window, keep: Tensor) -> Window:
    """The rows of a window where ``keep`` holds."""

    def rows(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[keep]
        if isinstance(value, Mapping):
            return {key: rows(item) for key, item in value.items()}
        return tuple(item for item, kept in zip(value, keep.tolist(), strict=True) if kept)

    return replace(window, **{name: rows(value) for name, value in vars(window).items()})


@torch.no_grad()
def encode_held_out(
    model: WorldActionModel,
    windows: Iterable[Window],
    episodes: Sequence[int] | np.ndarray,
    *,
    camera: str | None = None,
) -> HeldOut:
    """Encode held-out windows once, for all metrics and examples.

    Args:
        model: A model with ``encode(frames uint8 [n, 3, H, W]) -> [n, N, D]`` and, for latent actions,
            ``infer_latent_action(u, u_T)`` (a tensor [n, Q, Z] or a posterior with ``mean``).
        windows: Batches whose frames lie at 0, tau, 2 tau, ...: the model's own horizon, once or several times.
        episodes: Episode of each window over all batches; unique across data sets.
        camera: The primary view; by default the first of ``model.config.cameras``, else of the window.

    Raises:
        WorldMetricsError: For no usable window, or horizons that differ between windows.
    """
    device = model_device(model)
    model.eval()
    episodes = np.asarray(episodes)
    kept_windows, kept_episodes, features, frames, times, latents = [], [], [], [], [], []
    seen = dropped = 0
    mismatch = WorldMetricsError(f"There are {len(episodes)} episode numbers: give exactly one for each window.")
    for window in windows:
        if seen + window.batch_size > len(episodes):
            raise mismatch
        view = camera or next(iter(getattr(model.config, "cameras", ())), None) or next(iter(window.frames))
        if view not in window.frames:
            raise WorldMetricsError(f"The windows have no camera {view!r}: they have {', '.join(window.frames)}.")
        keep = window.frame_valid[view].all(dim=1)
        batch_episodes = episodes[seen : seen + window.batch_size]
        seen += window.batch_size
        dropped += int((~keep).sum())
        if not keep.any():
            continue
        window = _select(window, keep)
        pixels = window.frames[view]
        count, steps = pixels.shape[:2]
        encoded = model.encode(pixels.flatten(0, 1).to(device)).float().unflatten(0, (count, steps))
        if hasattr(model, "infer_latent_action"):
            inferred = [model.infer_latent_action(encoded[:, t], encoded[:, t + 1]) for t in range(steps - 1)]
            latents.append(
                as_numpy(torch.stack([getattr(z, "mean", z) if not isinstance(z, Tensor) else z for z in inferred], 1))
            )
        kept_windows.append(window)
        kept_episodes.append(batch_episodes[keep.numpy()])
        features.append(as_numpy(encoded))
        frames.append(pixels.permute(0, 1, 3, 4, 2).cpu().numpy())
        times.append(window.frame_times.cpu().numpy())
    if seen != len(episodes):
        raise mismatch
    if not features:
        raise WorldMetricsError(
            "No held-out window has all its frames: hold out longer episodes or shorten the horizon."
        )
    all_times = np.concatenate(times)
    if not np.allclose(all_times, all_times[:1], atol=0.02):
        raise WorldMetricsError("The windows' horizons differ: measure one embodiment at a time.")
    return HeldOut(
        windows=tuple(kept_windows),
        episodes=np.concatenate(kept_episodes),
        features=np.concatenate(features),
        frames=np.concatenate(frames),
        horizon_s=all_times[:, 1:].mean(axis=0) - all_times[:, 0].mean(),
        latent_actions=np.concatenate(latents) if latents else None,
        dropped=dropped,
    )
