"""Held-out windows in a model's feature space, encoded once for all metrics and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.dynamics.base import LatentDynamics
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
    at: tuple[int, ...] = ()
    """Which of a window's frames each frame of features speaks of; empty: each its own."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the N tokens, where the model says."""
    pair: int = 0
    """Latent actions are measured between features ``pair`` and ``pair + 1``."""
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Number of each of these windows among those that were to be encoded, [n]; empty where nobody counted."""

    @property
    def present(self) -> np.ndarray:
        """The first frame of the measured pair, [n, N, D]."""
        return self.features[:, self.pair]

    @property
    def future(self) -> np.ndarray:
        """The second, [n, N, D]."""
        return self.features[:, self.pair + 1]

    @property
    def latent(self) -> np.ndarray | None:
        """The latent action between them, [n, Q, Z]."""
        return None if self.latent_actions is None else self.latent_actions[:, self.pair]

    @property
    def pair_s(self) -> float:
        """Seconds between them."""
        times = np.concatenate([[0.0], self.horizon_s])
        return float(times[self.pair + 1] - times[self.pair])

    def of_pair(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of values at each frame of the windows [n, frames, ...], those at the two frames of the pair."""
        first, second = (self.at[i] if self.at else i for i in (self.pair, self.pair + 1))
        return values[:, first], values[:, second]

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


def latent_action_of(model: Any) -> tuple[Callable[..., Any], Callable[..., Tensor]] | None:
    """How a model infers a latent action from two frames, and how it steps under one; None where it has none.

    Its own ``infer_latent_action`` and ``predict``, or the latent-action model that it holds as ``latent_actions``.
    """
    if hasattr(model, "infer_latent_action"):
        return model.infer_latent_action, getattr(model, "predict", _no_step)
    held = getattr(model, "latent_actions", None)
    return (held.infer, held.decoder) if isinstance(held, LatentDynamics) else None


def _no_step(*_: Any) -> Tensor:
    raise WorldMetricsError("This model infers latent actions, and has no step that they drive (`predict`).")


@dataclass(frozen=True)
class _Encoded:
    features: Tensor
    """[n, 1 + T, N, D]."""
    pictures: Tensor
    """uint8 [n, 1 + T, 3, H, W]."""
    keep: Tensor
    """Which windows have all their frames, [n]."""
    at: tuple[int, ...]
    grid: tuple[int, int] | None


def _frame_by_frame(model: Any, window: Window, camera: str | None) -> _Encoded:
    """Each frame of the primary view through the model's visual encoder."""
    view = camera or next(iter(getattr(model.config, "cameras", ())), None) or next(iter(window.frames))
    if view not in window.frames:
        raise WorldMetricsError(f"The windows have no camera {view!r}: they have {', '.join(window.frames)}.")
    pixels = window.frames[view]
    count, steps = pixels.shape[:2]
    encoded = model.encode(pixels.flatten(0, 1).to(model_device(model))).float().unflatten(0, (count, steps))
    grid = getattr(getattr(model, "vision_encoder", None), "grid", None)
    return _Encoded(encoded, pixels, window.frame_valid[view].all(dim=1), tuple(range(steps)), grid)


def _clip_by_clip(model: Any, window: Window) -> _Encoded:
    """The latent frames of each clip; each is shown as the last picture that it was made of."""
    device = model_device(model)
    latents, valid = model.latents_of(window.to(device))
    pictures = model.clip_of(window.frames)
    frames = latents.shape[2]
    every = (pictures.shape[1] - 1) // max(frames - 1, 1)
    at = tuple(every * frame for frame in range(frames))
    features = latents.float().flatten(3).permute(0, 2, 3, 1)
    # A latent frame counts as recorded where one of its pictures is; to measure motion, all must be.
    cameras = getattr(model.config, "cameras", None) or tuple(window.frame_valid)
    whole = torch.stack([window.frame_valid[camera].all(dim=1) for camera in cameras]).all(dim=0)
    return _Encoded(features, pictures[:, list(at)], whole & valid.all(dim=1).cpu(), at, tuple(latents.shape[-2:]))


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
        model: A model with ``encode(frames uint8 [n, 3, H, W]) -> [n, N, D]``; or, where clips are encoded whole,
            ``latents_of(window) -> (latents [n, C, F, h, w], valid [n, F])`` and ``clip_of(frames) -> uint8
            [n, T, 3, H, W]``. For latent actions, see `latent_action_of`; what it infers is a tensor [n, Q, Z] or a
            posterior with ``mean``.
        windows: Batches whose frames lie at 0, tau, 2 tau, ...: the model's own horizon, once or several times; or
            the model's own clip.
        episodes: Episode of each window over all batches; unique across data sets.
        camera: The primary view, where frames are encoded one by one; by default the first of
            ``model.config.cameras``, else of the window.

    Raises:
        WorldMetricsError: For no usable window, or horizons that differ between windows.
    """
    model.eval()
    episodes = np.asarray(episodes)
    kept_windows, kept_episodes, features, frames, times, latents = [], [], [], [], [], []
    numbers: list[np.ndarray] = []
    seen = dropped = 0
    acting = latent_action_of(model)
    at: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    mismatch = WorldMetricsError(f"There are {len(episodes)} episode numbers: give exactly one for each window.")
    for window in windows:
        if seen + window.batch_size > len(episodes):
            raise mismatch
        whole = _clip_by_clip(model, window) if hasattr(model, "latents_of") else _frame_by_frame(model, window, camera)
        batch_episodes = episodes[seen : seen + window.batch_size]
        keep = whole.keep
        numbers.append(seen + np.flatnonzero(keep.numpy()))
        seen += window.batch_size
        dropped += int((~keep).sum())
        if not keep.any():
            continue
        encoded = whole.features[keep.to(whole.features.device)]
        if acting is not None:
            inferred = [acting[0](encoded[:, t], encoded[:, t + 1]) for t in range(encoded.shape[1] - 1)]
            latents.append(
                as_numpy(torch.stack([getattr(z, "mean", z) if not isinstance(z, Tensor) else z for z in inferred], 1))
            )
        kept_windows.append(_select(window, keep))
        kept_episodes.append(batch_episodes[keep.numpy()])
        features.append(as_numpy(encoded))
        frames.append(whole.pictures[keep].permute(0, 1, 3, 4, 2).cpu().numpy())
        times.append(window.frame_times[keep][:, list(whole.at)].cpu().numpy())
        at, grid = whole.at, whole.grid
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
        at=at,
        grid=grid,
        # The first latent frame of a clip stands for one picture, the others for several: two of a kind are compared.
        pair=1 if hasattr(model, "latents_of") and len(at) > 2 else 0,
        kept=np.concatenate(numbers),
    )
