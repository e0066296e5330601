"""``imagine.json``: a world action model measured on held-out windows, and examples of what it imagines.

The metrics themselves are in `world_metrics` and `probes`, on arrays; here the model's methods are called. What a
model cannot do is written under ``not_measured`` with the reason, never left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wamkit.evaluation import world_metrics as metrics
from wamkit.evaluation.held_out import HeldOut, as_numpy, model_device
from wamkit.evaluation.probes import ProbeError, encoder_probe, latent_action_probe
from wamkit.evaluation.report_figures import SubgoalExample, TransferExample
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.world_metrics import WorldMetricsError

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel


def _predictor(model: WorldActionModel, batch: int = 64) -> metrics.Predict:
    """``model.predict`` on arrays, in pieces."""
    device = model_device(model)

    @torch.no_grad()
    def predict(features: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        pieces = [
            as_numpy(
                model.predict(
                    torch.from_numpy(np.ascontiguousarray(features[i : i + batch])).to(device),
                    torch.from_numpy(np.ascontiguousarray(conditions[i : i + batch])).to(device),
                )
            )
            for i in range(0, len(features), batch)
        ]
        return np.concatenate(pieces)

    return predict


@torch.no_grad()
def imagined_subgoals(model: WorldActionModel, held_out: HeldOut) -> np.ndarray:
    """What the policy itself imagines one horizon ahead, from observation and instruction alone: [n, N, D]."""
    device = model_device(model)
    futures = [model.imagine(window.observation().to(device)) for window in held_out.windows]
    if any(future.space != "features" for future in futures):
        raise WorldMetricsError(f"The model imagines {futures[0].space}, not features.")
    return np.concatenate([as_numpy(future.values[:, 0]) for future in futures])


@torch.no_grad()
def _act(
    model: WorldActionModel,
    held_out: HeldOut,
    seed: int,
    *,
    subgoals: np.ndarray | None = None,
    tasks: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Actions [n, K, A] under noise that ``seed`` fixes, the same for every sample, and which of them are valid."""
    device, shape = model_device(model), model.action_noise_shape
    actions, valid, start = [], [], 0
    noise = None if shape is None else torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    for window in held_out.windows:
        end = start + window.batch_size
        observation = window.observation().to(device)
        if tasks:
            observation = replace(observation, task=tuple(tasks[start:end]))
        arguments: dict[str, Any] = {}
        if noise is not None:
            arguments["noise"] = noise.expand(window.batch_size, -1, -1).to(device)
        if subgoals is not None:
            arguments["subgoal"] = torch.from_numpy(subgoals[start:end]).to(device)
        chunk = model.act(observation, **arguments)
        # Padded action dimensions carry nothing: those that no window of the batch uses are left out below.
        actions.append(as_numpy(chunk.actions))
        valid.append(chunk.valid.cpu().numpy())
        start = end
    used = torch.cat([window.action_valid.flatten(0, 1) for window in held_out.windows]).any(dim=0).cpu().numpy()
    width = int(np.flatnonzero(used).max()) + 1 if used.any() else actions[0].shape[-1]
    return np.concatenate(actions)[..., :width], np.concatenate(valid)


def _belief(model: WorldActionModel, held_out: HeldOut, subgoals: np.ndarray, seed: int) -> dict[str, Any]:
    partner = metrics.other_episode(held_out.episodes, seed)
    own, valid = _act(model, held_out, seed, subgoals=subgoals)
    swapped, _ = _act(model, held_out, seed, subgoals=subgoals[partner])
    fresh, _ = _act(model, held_out, seed + 1, subgoals=subgoals)
    return metrics.action_change(own, swapped, fresh, partner, held_out.episodes, valid=valid, seed=seed)


def _instruction(model: WorldActionModel, held_out: HeldOut, seed: int) -> dict[str, Any]:
    tasks = np.array([task for window in held_out.windows for task in window.task])
    if len(set(tasks)) < 2:
        raise WorldMetricsError("All held-out windows have the same instruction.")
    # A partner with another instruction, of whatever episode.
    partner = metrics.other_episode(np.unique(tasks, return_inverse=True)[1], seed)
    own, valid = _act(model, held_out, seed)
    swapped, _ = _act(model, held_out, seed, tasks=tasks[partner].tolist())
    fresh, _ = _act(model, held_out, seed + 1)
    return metrics.action_change(own, swapped, fresh, partner, held_out.episodes, valid=valid, seed=seed)


def _effect_region(predict: metrics.Predict, held_out: HeldOut) -> dict[str, Any]:
    scale, present, future = held_out.scale, held_out.features[:, 0], held_out.features[:, 1]
    latent = held_out.latent_actions[:, 0]
    neutral = np.broadcast_to(latent.mean(axis=0), latent.shape)
    effect = scale.distance_map(predict(present, latent), predict(present, neutral))
    change = scale.distance_map(present, future)
    return metrics.effect_region(effect, metrics.moving_patches(change), change) | {
        "arm": "the tenth of the patches that truly changed most"
    }


def imagine_report(
    model: WorldActionModel,
    held_out: HeldOut,
    *,
    end_effector: Sequence[int] = (0, 1, 2),
    positions: Mapping[str, np.ndarray] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every world-model metric that the model and the data allow.

    Args:
        model: With ``encode``, ``predict(u, z)``, ``imagine(observation)`` and ``act(observation, noise=, subgoal=)``;
            what is missing is reported as not measured.
        held_out: From `wamkit.evaluation.held_out.encode_held_out`, of episodes that were not trained on.
        end_effector: State dimensions that hold the end effector's position.
        positions: More quantities at the present frame to look for in the encoder's features, such as
            ``{"object": [n, 3]}``, a row for each window of ``held_out``.
        provenance: From `wamkit.evaluation.provenance.collect`.
        seed: Fixes partners, noise and resampling.

    Returns:
        The ``imagine.json`` object: ``feature_error``, ``action_dependence``, ``latent_action_probe``,
        ``subgoal_belief``, ``instruction_dependence``, ``effect_region``, ``encoder_probe``, ``not_measured``
        (reason by name), ``windows`` and ``provenance``.
    """
    scale, features, episodes = held_out.scale, held_out.features, held_out.episodes
    present, future, latent = features[:, 0], features[:, 1:], held_out.latent_actions
    state = torch.cat([window.state for window in held_out.windows]).float().numpy()
    known = torch.cat([window.state_valid for window in held_out.windows]).numpy()
    hand = list(end_effector)
    has_hand = state.shape[-1] > max(hand) and bool(known[:, :2][..., hand].all())
    result: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def measure(name: str, make: Callable[[], Any]) -> None:
        try:
            result[name] = make()
        except (WorldMetricsError, ProbeError) as error:
            missing[name] = str(error)

    subgoals: np.ndarray | None = None
    try:
        subgoals = imagined_subgoals(model, held_out)
    except (WorldMetricsError, ValueError, NotImplementedError) as error:
        missing["policy_subgoal"] = str(error)

    if latent is not None and hasattr(model, "predict"):
        predict = _predictor(model)

        def error_by_horizon() -> dict[str, Any]:
            rolled = metrics.roll_out(predict, present, latent)
            entry = metrics.feature_error(rolled, future, present, held_out.horizon_s, scale, episodes, seed=seed)
            entry["latent_actions"] = "inferred from the true frames"
            if subgoals is not None:
                own = metrics.feature_error(
                    subgoals[:, None], future[:, :1], present, held_out.horizon_s[:1], scale, episodes, seed=seed
                )
                entry["policy"] = {key: own[key][0] for key in ("model", "copy_present", "ratio", "ratio_ci95")}
            return entry

        measure("feature_error", error_by_horizon)
        measure(
            "action_dependence",
            lambda: {
                "latent_action": metrics.action_dependence(
                    predict, present, latent[:, 0], future[:, 0], scale, episodes, seed=seed
                )
            },
        )
        measure("effect_region", lambda: _effect_region(predict, held_out))
        missing["action_dependence.action"] = "This model imagines under latent actions, not under robot actions."
    else:
        for name in ("feature_error", "action_dependence", "effect_region"):
            missing[name] = "This model has no latent action that its world model could be driven by."

    no_state = "The held-out windows carry no end-effector position."
    if latent is None:
        missing["latent_action_probe"] = "This model has no latent action."
    elif not has_hand:
        missing["latent_action_probe"] = no_state
    else:
        motion = state[:, 1, hand] - state[:, 0, hand]
        measure("latent_action_probe", lambda: latent_action_probe(latent[:, 0], motion, episodes, seed=seed))

    where = dict(positions or {})
    if has_hand:
        where = {"end_effector": state[:, 0, hand]} | where
    if where:
        measure("encoder_probe", lambda: encoder_probe(present, where, episodes, seed=seed))
    else:
        missing["encoder_probe"] = no_state

    if subgoals is None or "subgoal" not in inspect.signature(model.act).parameters:
        missing["subgoal_belief"] = "The action head takes no subgoal from outside."
    else:
        measure("subgoal_belief", lambda: _belief(model, held_out, subgoals, seed))
    measure("instruction_dependence", lambda: _instruction(model, held_out, seed))

    result |= {
        "not_measured": missing,
        "windows": {"n": len(features), "episodes": len(np.unique(episodes)), "dropped": held_out.dropped},
        "provenance": dict(provenance or {}),
    }
    refuse_non_finite(result)
    return result


def examples(
    model: WorldActionModel, held_out: HeldOut, *, count: int = 4, seed: int = 0
) -> tuple[list[SubgoalExample], list[TransferExample]]:
    """Pictures for the report, drawn at random among windows with more than the median true motion.

    Args:
        model: As for `imagine_report`; needs latent actions and ``predict``.
        held_out: From `wamkit.evaluation.held_out.encode_held_out`.
        count: How many of each kind; spread over the instructions.
        seed: Fixes the draw.
    """
    if held_out.latent_actions is None:
        return [], []
    rng, scale, predict = np.random.default_rng(seed), held_out.scale, _predictor(model)
    present, future, latent = held_out.features[:, 0], held_out.features[:, 1], held_out.latent_actions[:, 0]
    try:
        subgoals, source = imagined_subgoals(model, held_out), "the policy's own subgoal"
    except (WorldMetricsError, ValueError, NotImplementedError):
        subgoals, source = predict(present, latent), "roll-out under the inferred latent action"
    tasks = [task for window in held_out.windows for task in window.task]
    change = scale.distance_map(present, future)
    moving = np.flatnonzero(change.mean(axis=1) >= np.median(change.mean(axis=1)))
    by_task: dict[str, list[int]] = {}
    for index in rng.permutation(moving):
        by_task.setdefault(tasks[index], []).append(int(index))
    queues = [by_task[task] for task in sorted(by_task)]
    rounds = (queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue))
    chosen = [index for index, _ in zip(rounds, range(count), strict=False)]
    grid = tuple(getattr(getattr(model, "vision_encoder", None), "grid", None) or _square(present.shape[1]))

    def subgoal(i: int) -> SubgoalExample:
        patch = metrics.mover_patch(present[i], future[i], scale)
        return SubgoalExample(
            now=held_out.frames[i, 0],
            later=held_out.frames[i, 1],
            grid=grid,
            patch=patch,
            similarity_predicted=metrics.similarity_map(present[i], subgoals[i], patch, scale),
            similarity_true=metrics.similarity_map(present[i], future[i], patch, scale),
            change_predicted=scale.distance_map(present[i], subgoals[i]),
            change_true=change[i],
            label=tasks[i],
            horizon_s=float(held_out.horizon_s[0]),
            source=source,
        )

    def transfer(i: int, j: int) -> TransferExample:
        applied = predict(present[j : j + 1], latent[i : i + 1])[0]
        return TransferExample(
            source_now=held_out.frames[i, 0],
            source_later=held_out.frames[i, 1],
            source_change=change[i],
            target_now=held_out.frames[j, 0],
            target_change=scale.distance_map(present[j], applied),
            grid=grid,
            source_label=tasks[i],
            target_label=tasks[j],
        )

    _, kinds = np.unique(tasks, return_inverse=True)
    groups = kinds if len(set(tasks)) > 1 else held_out.episodes
    if len(np.unique(groups)) < 2:  # no other scene to transfer to
        return [subgoal(i) for i in chosen], []
    partners = metrics.other_episode(groups, seed)
    return [subgoal(i) for i in chosen], [transfer(i, int(partners[i])) for i in chosen]


def _square(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise WorldMetricsError(f"{tokens} patches are no square grid: give the encoder a `grid`.")
    return side, side
