"""``imagine.json`` of a model that imagines pictures: its video beside the real one, and beside nothing moving.

PSNR and SSIM are taken between pictures in [0, 1] at the size that the model decodes to; the real pictures are brought
to it by area. Beside the model stand what copying the present would score, and what the VAE alone loses on the true
future: the model cannot do better than that. LPIPS needs a network's weights; it is measured where they are at hand,
and FVD, whose network is not a dependency, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wamkit.evaluation.held_out import as_numpy, model_device
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.world_metrics import WorldMetricsError, ratio_interval

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.types import Window

_ALEXNET = "alexnet-owt-7be5be79.pth"
"""torchvision's file, which LPIPS is computed with."""
_STRIPS = 4


def psnr(made: Float[Tensor, "*batch 3 h w"], real: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB; at most 100."""
    return -10.0 * (made - real).square().mean(dim=(-3, -2, -1)).clamp(min=1e-10).log10()


def ssim(made: Float[Tensor, "n T 3 h w"], real: Float[Tensor, "n T 3 h w"]) -> Float[Tensor, "n T"]:
    """Structural similarity of each picture (Gaussian window of 11 pixels)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(
        made.flatten(0, 1), real.flatten(0, 1), data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)
    return values.unflatten(0, made.shape[:2])


@torch.no_grad()
def video_report(
    model: WorldActionModel,
    windows: Sequence[Window],
    episodes: Sequence[int] | np.ndarray,
    *,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Pixel error against horizon, on held-out windows.

    Args:
        model: Imagines pixels, and has ``pictures_of`` and ``reconstruction_of`` as `VideoWorldModel` has.
        windows: Batches whose frames are the model's own clip.
        episodes: Episode of each window over all batches.
        provenance: From `wamkit.evaluation.provenance.collect`.
        seed: Fixes resampling.
        pictures: Folder for a few strips of pictures, real above imagined; None: none.

    Returns:
        ``pixel_error`` (by horizon ``horizon_s``: ``psnr`` and ``ssim`` of ``model``, ``copy_present`` and
        ``reconstruction``, and ``ratio`` of squared error to copy-the-present with ``ratio_ci95`` over episodes),
        ``not_measured``, ``windows`` and ``provenance``.

    Raises:
        WorldMetricsError: No window has all its frames.
    """
    model.eval()
    device, episodes, camera = model_device(model), np.asarray(episodes), model.config.cameras[0]
    kept_episodes: list[np.ndarray] = []
    made, real, still, redone = [], [], [], []
    times: np.ndarray | None = None
    seen = 0
    for window in windows:
        keep = window.frame_valid[camera].all(dim=1)
        batch = episodes[seen : seen + window.batch_size]
        seen += window.batch_size
        if not keep.any():
            continue
        moved = window.to(device)
        future = model.imagine(moved.observation())
        size = future.values.shape[-2:]
        true = model.pictures_of(moved.frames, size)
        made.append(future.values[keep].cpu())
        real.append(true[keep, 1:].cpu())
        still.append(future.present[keep].cpu().unsqueeze(1).expand_as(made[-1]))
        redone.append(model.reconstruction_of(moved)[keep, 1:].cpu())
        times = as_numpy(future.times[0])
        kept_episodes.append(batch[keep.numpy()])
    if not made or times is None:
        raise WorldMetricsError("No held-out window has all its frames: hold out longer episodes.")
    kept = np.concatenate(kept_episodes)
    videos = {"model": torch.cat(made), "copy_present": torch.cat(still), "reconstruction": torch.cat(redone)}
    truth = torch.cat(real)
    missing: dict[str, str] = {
        "fvd": "FVD needs the weights of a video classifier (I3D), which are not at hand; nothing stands in for them."
    }
    error: dict[str, Any] = {"horizon_s": times.tolist(), "psnr": {}, "ssim": {}}
    for name, video in videos.items():
        error["psnr"][name] = psnr(video, truth).mean(dim=0).tolist()
        error["ssim"][name] = ssim(video, truth).mean(dim=0).tolist()
    squared = {name: (video - truth).square().mean(dim=(2, 3, 4)).numpy() for name, video in videos.items()}
    try:
        pairs = [
            ratio_interval(squared["model"][:, t], squared["copy_present"][:, t], kept, seed=seed)
            for t in range(len(times))
        ]
        error["ratio"], error["ratio_ci95"] = [p[0] for p in pairs], [list(p[1]) for p in pairs]
    except WorldMetricsError as reason:
        missing["pixel_error.ratio"] = str(reason)
    lpips = _lpips()
    if lpips is None:
        missing["lpips"] = f"LPIPS needs torchvision's {_ALEXNET}, which is not at hand; nothing stands in for it."
    else:
        error["lpips"] = {
            name: [float(lpips(video[:, t], truth[:, t])) for t in range(len(times))] for name, video in videos.items()
        }
    if pictures is not None:
        _write_strips(pictures, videos["model"], truth)
    result = {
        "pixel_error": error,
        "not_measured": missing,
        "windows": {"n": len(kept), "episodes": len(np.unique(kept)), "dropped": seen - len(kept)},
        "provenance": dict(provenance or {}),
    }
    refuse_non_finite(result)
    return result


def _lpips() -> Any | None:
    """The metric on pictures in [0, 1], or None where its network's weights are not on this machine."""
    if not (Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET).is_file():
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def _write_strips(folder: Path, made: Tensor, real: Tensor) -> None:
    """Evenly chosen windows as pictures: time to the right, real above imagined."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(np.linspace(0, len(made) - 1, min(_STRIPS, len(made))).round().astype(int)):
        rows = [torch.cat(list(video[index]), dim=-1) for video in (real, made)]
        strip = (torch.cat(rows, dim=-2).clamp(0, 1) * 255).round().to(torch.uint8)
        Image.fromarray(strip.permute(1, 2, 0).numpy()).save(folder / f"imagined_{number}.png")
