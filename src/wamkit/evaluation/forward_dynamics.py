"""Does imagined video depend on the actions that it is told? Forward dynamics under true, swapped and no actions.

For models that imagine pixels under given actions. Squared error of the pixels by horizon, on held-out windows: of
video imagined under the true actions, under another window's actions, under none, and of copying the present. A model
that ignores actions has the same error under all; one that copies has that of the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.evaluation.held_out import model_device
from wamkit.evaluation.world_metrics import WorldMetricsError, ratio_interval

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.types import Window


@torch.no_grad()
def forward_dynamics(
    model: WorldActionModel, windows: Sequence[Window], episodes: Sequence[int], *, seed: int = 0
) -> dict[str, Any]:
    """Error against horizon of video under the true, swapped and no actions.

    Args:
        model: Imagines pixels under actions, and has ``pictures_of``.
        windows: Batches with frames and actions of the model's own sequence, two samples each at least.
        episodes: Episode of each window over all batches.
        seed: Fixes resampling.

    Returns:
        ``horizon_s``; ``squared_error`` by horizon of ``true``, ``swapped``, ``none`` and ``copy_present``;
        ``over_copy`` (true over copying) and ``swapped_over_true``, each with its ``ci95`` over episodes, over all
        horizons together; ``n``.

    Raises:
        WorldMetricsError: The model cannot be told actions, or no window is whole.
    """
    if not model.capabilities.action_conditioned or "pixels" not in model.capabilities.imagines:
        raise WorldMetricsError(f"{model.name} does not imagine pixels under given actions.")
    model.eval()
    device, camera = model_device(model), model.config.cameras[0]
    errors: dict[str, list[np.ndarray]] = {"true": [], "swapped": [], "none": [], "copy_present": []}
    kept: list[int] = []
    times, seen = np.zeros(0), 0
    for window in windows:
        moved, batch = window.to(device), list(episodes[seen : seen + window.batch_size])
        seen += window.batch_size
        steps = int(moved.action_valid.any(dim=-1).sum(dim=1).max())
        # Whole: every picture recorded, and an action for every moment.
        whole = moved.frame_valid[camera].all(dim=1) & moved.action_valid[:, :steps].any(dim=-1).all(dim=1)
        if int(whole.sum()) < 2:
            continue
        observation = moved.observation()
        actions = moved.actions[:, :steps]
        # Another window's actions, of those that are whole themselves.
        order = torch.arange(len(actions), device=device)
        order[whole] = order[whole].roll(1)
        made = {
            "true": model.imagine(observation, actions),
            "swapped": model.imagine(observation, actions[order]),
            "none": model.imagine(observation),
        }
        times = made["true"].times[0].cpu().numpy()
        truth = model.pictures_of(moved.frames, made["true"].values.shape[-2:])[:, 1 : len(times) + 1]
        videos: dict[str, Tensor] = {name: future.values[:, : len(times)] for name, future in made.items()}
        videos["copy_present"] = made["true"].present.unsqueeze(1).expand_as(truth)
        for name, video in videos.items():
            errors[name].append((video - truth).square().mean(dim=(2, 3, 4))[whole].cpu().numpy())
        kept += [episode for episode, take in zip(batch, whole.tolist(), strict=True) if take]
    if not kept:
        raise WorldMetricsError("No batch has two whole windows: hold out longer episodes.")
    by_name = {name: np.concatenate(parts) for name, parts in errors.items()}
    result: dict[str, Any] = {
        "horizon_s": times.tolist(),
        "squared_error": {name: values.mean(axis=0).tolist() for name, values in by_name.items()},
        "n": len(kept),
        "episodes": len(set(kept)),
    }
    total = {name: values.mean(axis=1) for name, values in by_name.items()}
    for name, (above, below) in {
        "over_copy": ("true", "copy_present"),
        "swapped_over_true": ("swapped", "true"),
    }.items():
        try:
            value, interval = ratio_interval(total[above], total[below], np.asarray(kept), seed=seed)
        except WorldMetricsError as reason:
            result[name], result[f"{name}_ci95"] = None, str(reason)
        else:
            result[name], result[f"{name}_ci95"] = value, list(interval)
    return result
