"""Whether actions can be read off a tokenizer's latents with one matrix: R2, and how often the reading is close.

RepWAM reports "OLS@0.03" and does not define it (papers.md 3.7). Here a step is the time between two consecutive latent
frames, its action the mean of the actions that took effect in it, normalised to [-1, 1] over the training episodes, and
the share is that of steps at which the mean absolute error over the action's dimensions is under 0.03. The regression
is ridge, with its penalty chosen inside the training episodes: a grid of latents has more numbers than there are
samples, and plain least squares would then not be defined. Beside the share stands what saying the mean action scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from wamkit.evaluation.probes import ProbeError, probe_with_errors
from wamkit.evaluation.world_metrics import ratio_interval

TOLERANCE = 0.03
"""RepWAM's, in normalised units."""


def action_probe(
    latents: Float[np.ndarray, "n F P"],
    actions: Float[np.ndarray, "n G A"],
    episodes: Int[np.ndarray, "n"],
    *,
    names: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[str, Any]:
    """A linear probe from each pair of consecutive latent frames to the action between them.

    Args:
        latents: Latent frames of clips, all cells of one frame in a row.
        actions: The mean action of each step, normalised; G = F - 1.
        episodes: Episode of each clip.
        names: Of the action's dimensions.
        tolerance: Largest mean absolute error of a step that counts as read.
        seed: See `wamkit.evaluation.probes.linear_probe`.

    Returns:
        `ProbeResult.to_json`, and ``share_within``: ``tolerance``, ``share`` with ``ci95`` over episodes,
        ``mean_action`` (the share where the mean action is always said), ``mean_absolute_error``.

    Raises:
        ProbeError: fewer than two latent frames, or see `linear_probe`.
    """
    latents, actions, episodes = np.asarray(latents), np.asarray(actions), np.asarray(episodes)
    if latents.ndim != 3 or latents.shape[1] < 2 or actions.shape[:2] != (len(latents), latents.shape[1] - 1):
        raise ProbeError(
            f"An action lies between two latent frames: latents [n, F, P] with F > 1 and actions [n, F - 1, A] are"
            f" needed, not {latents.shape} and {actions.shape}; use clips of at least 5 pictures."
        )
    pairs = np.concatenate([latents[:, :-1], latents[:, 1:]], axis=-1)
    steps = actions.shape[1]
    result, errors = probe_with_errors(
        pairs.reshape(-1, pairs.shape[-1]),
        actions.reshape(-1, actions.shape[-1]),
        np.repeat(episodes, steps),
        names=names,
        seed=seed,
    )
    within = errors.probe.mean(axis=1) < tolerance
    share, ci95 = ratio_interval(within, np.ones(len(within)), np.repeat(episodes, steps), seed=seed)
    return result.to_json() | {
        "share_within": {
            "tolerance": tolerance,
            "share": share,
            "ci95": list(ci95),
            "mean_action": float((errors.mean.mean(axis=1) < tolerance).mean()),
            "mean_absolute_error": float(errors.probe.mean()),
        }
    }


def actions_of_steps(
    actions: Float[np.ndarray, "n K A"],
    action_times: Float[np.ndarray, "n K"],
    frame_times: Float[np.ndarray, "n T"],
    pictures: int = 4,
) -> Float[np.ndarray, "n G A"]:
    """The mean of the actions that take effect between two latent frames' last pictures.

    Args:
        actions: A chunk that begins at the clip's first picture.
        action_times: Seconds from there, [n, K].
        frame_times: Seconds of the clip's pictures from there, [n, T]; T = 1 + pictures * G.
        pictures: Of one latent frame.

    Raises:
        ProbeError: a step holds no action.
    """
    ends = np.asarray(frame_times)[:, ::pictures]
    times = np.asarray(action_times)[:, None, :]
    inside = (times >= ends[:, :-1, None] - 1e-6) & (times < ends[:, 1:, None] - 1e-6)
    counts = inside.sum(axis=-1, keepdims=True)
    if not counts.all():
        raise ProbeError("A step between two latent frames holds no action: space the clip's pictures further apart.")
    return (inside @ np.asarray(actions)) / counts
