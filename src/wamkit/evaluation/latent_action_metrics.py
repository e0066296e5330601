"""What a latent action means, whatever model it belongs to: what it reads, where it acts, whether it transfers.

The metrics need held-out pairs of frames in the model's own space, the latent action between them, and the model's
step ``predict(features, latent action)``; LaWAM's latent actions and RepWAM's give both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wamkit.evaluation import world_metrics as metrics
from wamkit.evaluation.held_out import HeldOut, as_numpy, latent_action_of, model_device
from wamkit.evaluation.probes import ProbeError, latent_action_probe
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.world_metrics import WorldMetricsError

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features [n, N, D] and later features [n, N, D] to the latent action between them [n, Q, Z]."""


@dataclass
class Measurements:
    """What was measured, and by name why the rest was not."""

    found: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, make: Callable[[], Any]) -> None:
        """Keep what ``make`` returns, or the reason that it gives."""
        try:
            self.found[name] = make()
        except (WorldMetricsError, ProbeError) as error:
            self.missing[name] = str(error)


def _in_pieces(model: WorldActionModel, function: Callable[..., Any], batch: int) -> Callable[..., np.ndarray]:
    device = model_device(model)

    @torch.no_grad()
    def run(*arrays: np.ndarray) -> np.ndarray:
        pieces = []
        for start in range(0, len(arrays[0]), batch):
            part = (torch.from_numpy(np.ascontiguousarray(a[start : start + batch])).to(device) for a in arrays)
            value = function(*part)
            pieces.append(as_numpy(value if isinstance(value, torch.Tensor) else value.mean))
        return np.concatenate(pieces)

    return run


def predictor(model: WorldActionModel, batch: int = 64) -> metrics.Predict:
    """The model's step under a latent action, on arrays, in pieces."""
    return _in_pieces(model, _acting(model)[1], batch)


def inverse(model: WorldActionModel, batch: int = 64) -> Infer:
    """The model's inference of a latent action, on arrays, in pieces."""
    return _in_pieces(model, _acting(model)[0], batch)


def _acting(model: WorldActionModel) -> tuple[Callable[..., Any], Callable[..., torch.Tensor]]:
    found = latent_action_of(model)
    if found is None:
        raise WorldMetricsError("This model has no latent action that its world model could be driven by.")
    return found


def effect_region(predict: metrics.Predict, held_out: HeldOut, *, seed: int = 0) -> dict[str, Any]:
    """How far what a latent action changes lies where something moves: arm against background.

    The effect of a latent action is the distance between what is predicted under it and under the mean latent action.
    """
    scale, present, latent = held_out.scale, held_out.present, _latent(held_out)
    neutral = np.broadcast_to(latent.mean(axis=0), latent.shape)
    effect = scale.distance_map(predict(present, latent), predict(present, neutral))
    change = scale.distance_map(present, held_out.future)
    arm = metrics.moving_patches(change)
    region = metrics.effect_region(effect, arm, change) | {"arm": "the tenth of the patches that truly changed most"}
    region["true_ratio"] = float(change[arm].mean() / max(float(change[~arm].mean()), 1e-12))
    return region | {"ci95": list(_on_over_off(effect, arm, ~arm, held_out.episodes, seed)[1])}


def _on_over_off(
    maps: np.ndarray, on: np.ndarray, off: np.ndarray, episodes: np.ndarray, seed: int
) -> tuple[float, tuple[float, float]]:
    """Mean of the maps where ``on`` over their mean where ``off``, sample by sample, with an interval over episodes."""
    means = [(maps * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1) for mask in (on, off)]
    # As in `world_metrics.effect_region`: a perfect step leaves exactly nothing off the arm.
    return metrics.ratio_interval(means[0], np.maximum(means[1], 1e-12), episodes, seed=seed)


def transfer(predict: metrics.Predict, infer: Infer | None, held_out: HeldOut, *, seed: int = 0) -> dict[str, Any]:
    """One scene's latent action in another: does it move that scene's arm, or the place where the first scene's was?

    Each sample's latent action is applied to a partner's present: of another instruction where there are several,
    else of another episode.

    Returns:
        ``target_over_source`` with ``ci95`` (mean effect on patches that move in the scene it is applied to and not in
        the one it comes from, over the opposite; above 1: it follows the arm; below 1: it marks a place),
        ``arm_over_rest`` (as in ``effect_region``, in the foreign scene), ``recovered_r2`` (how well the inverse
        model reads the latent action off the present and what was predicted from it; None without one),
        ``partners`` and ``n``.

    Raises:
        WorldMetricsError: There is no other scene, or nothing moves in different places.
    """
    scale, present, latent, groups, kind = held_out.scale, held_out.present, _latent(held_out), *scenes(held_out)
    partner = metrics.other_episode(groups, seed)
    arm = metrics.moving_patches(scale.distance_map(present, held_out.future))
    neutral = np.broadcast_to(latent.mean(axis=0), latent.shape)
    applied = predict(present[partner], latent)
    effect = scale.distance_map(applied, predict(present[partner], neutral))
    here, there = arm[partner] & ~arm, arm & ~arm[partner]
    apart = here.any(axis=1) & there.any(axis=1)
    if apart.sum() < 3:
        raise WorldMetricsError("The arms of different scenes are always at the same place: transfer tells nothing.")
    ratio, interval = _on_over_off(effect[apart], here[apart], there[apart], held_out.episodes[apart], seed)
    recovered = None
    if infer is not None:
        read = infer(present[partner], applied)
        spread = ((latent - latent.mean(axis=0)) ** 2).sum()
        if not spread > 0:
            raise WorldMetricsError(
                "The latent action is the same for every pair of frames: there is none to transfer."
            )
        recovered = float(1.0 - ((read - latent) ** 2).sum() / spread)
    return {
        "target_over_source": ratio,
        "ci95": list(interval),
        "arm_over_rest": _on_over_off(effect, arm[partner], ~arm[partner], held_out.episodes, seed)[0],
        "recovered_r2": recovered,
        "partners": f"of another {kind}",
        "n": int(apart.sum()),
    }


def scenes(held_out: HeldOut) -> tuple[np.ndarray, str]:
    """A number for each sample's scene: its instruction where there are several, else its episode."""
    tasks = [task for window in held_out.windows for task in window.task]
    if len(set(tasks)) > 1:
        return np.unique(tasks, return_inverse=True)[1], "instruction"
    return np.asarray(held_out.episodes), "episode"


def _latent(held_out: HeldOut) -> np.ndarray:
    if held_out.latent is None:
        raise WorldMetricsError("This model has no latent action.")
    return held_out.latent


def motion(held_out: HeldOut, end_effector: Sequence[int]) -> np.ndarray | None:
    """Displacement of the end effector over the measured pair, [n, 3]; None where the windows do not carry it."""
    hand = list(end_effector)
    state = torch.cat([window.state for window in held_out.windows]).float().numpy()
    known = torch.cat([window.state_valid for window in held_out.windows]).numpy()
    if state.shape[-1] <= max(hand):
        return None
    before, after = held_out.of_pair(state)
    there = np.stack(held_out.of_pair(known))
    return after[:, hand] - before[:, hand] if there[..., hand].all() else None


def latent_action_report(
    model: WorldActionModel, held_out: HeldOut, *, end_effector: Sequence[int] = (0, 1, 2), seed: int = 0
) -> Measurements:
    """``action_dependence`` (of the latent action), ``effect_region``, ``transfer`` and ``latent_action_probe``.

    Args:
        model: See `wamkit.evaluation.held_out.latent_action_of`; what is missing is said to be.
        held_out: From `wamkit.evaluation.held_out.encode_held_out`, of episodes that were not trained on.
        end_effector: State dimensions that hold the end effector's position.
        seed: Fixes partners and resampling.
    """
    result = Measurements()
    latent, scale = held_out.latent, held_out.scale
    if latent is None:
        for name in ("action_dependence", "effect_region", "transfer"):
            result.missing[name] = "This model has no latent action that its world model could be driven by."
    else:
        predict = predictor(model)
        result.measure(
            "action_dependence",
            lambda: {
                "latent_action": metrics.action_dependence(
                    predict, held_out.present, latent, held_out.future, scale, held_out.episodes, seed=seed
                )
            },
        )
        result.measure("effect_region", lambda: effect_region(predict, held_out, seed=seed))
        result.measure("transfer", lambda: transfer(predict, inverse(model), held_out, seed=seed))
    moved = motion(held_out, end_effector)
    if latent is None:
        result.missing["latent_action_probe"] = "This model has no latent action."
    elif moved is None:
        result.missing["latent_action_probe"] = "The held-out windows carry no end-effector position."
    else:
        result.measure("latent_action_probe", lambda: latent_action_probe(latent, moved, held_out.episodes, seed=seed))
    return result


def step_error(model: WorldActionModel, held_out: HeldOut, *, seed: int = 0) -> dict[str, Any]:
    """Error of the latent action's own step over the measured pair, beside copying the present.

    For a model whose imagination is another part than that step, such as RepWAM, whose video is generated.
    """
    predicted = predictor(model)(held_out.present, _latent(held_out))
    return metrics.feature_error(
        predicted[:, None],
        held_out.future[:, None],
        held_out.present,
        np.array([held_out.pair_s]),
        held_out.scale,
        held_out.episodes,
        seed=seed,
    )


def add_latent_actions(
    result: dict[str, Any], model: WorldActionModel, held_out: HeldOut, *, seed: int = 0
) -> dict[str, Any]:
    """An ``imagine.json`` object of imagined pictures, with what its model's latent actions mean added to it.

    Adds the entries of `latent_action_report` and ``latent_action_error`` (`step_error`), or why there are none.
    """
    measured = latent_action_report(model, held_out, seed=seed)
    if held_out.latent is not None:
        measured.measure("latent_action_error", lambda: step_error(model, held_out, seed=seed))
    merged = result | measured.found
    merged["not_measured"] = result.get("not_measured", {}) | measured.missing
    refuse_non_finite(merged)
    return merged
