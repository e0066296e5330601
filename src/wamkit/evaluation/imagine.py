"""``imagine.json``: a world action model measured on held-out windows, and examples of what it imagines.

The metrics themselves are in `world_metrics` and `probes`, on arrays; here the model's methods are called. What a
model cannot do is written under ``not_measured`` with the reason, never left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wamkit.evaluation import world_metrics as metrics
from wamkit.evaluation.held_out import HeldOut, as_numpy, model_device
from wamkit.evaluation.latent_action_metrics import latent_action_report, motion, predictor, scenes
from wamkit.evaluation.probes import ProbeError, encoder_probe
from wamkit.evaluation.report_figures import SubgoalExample, TransferExample
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.world_metrics import WorldMetricsError

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel


@torch.no_grad()
def imagined_subgoals(model: WorldActionModel, held_out: HeldOut) -> np.ndarray:
    """What the policy itself imagines one horizon ahead, from observation and instruction alone: [n, N, D]."""
    device = model_device(model)
    emits = getattr(getattr(model, "capabilities", None), "imagines", ("features",))
    if "features" not in emits:
        raise WorldMetricsError(f"The model imagines {' and '.join(emits) or 'nothing'}, not features.")
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
        ``subgoal_belief``, ``instruction_dependence``, ``effect_region``, ``transfer``, ``encoder_probe``,
        ``not_measured`` (reason by name), ``windows`` and ``provenance``.
    """
    scale, features, episodes = held_out.scale, held_out.features, held_out.episodes
    present, future, latent = features[:, 0], features[:, 1:], held_out.latent_actions
    measured = latent_action_report(model, held_out, end_effector=end_effector, seed=seed)
    result, missing, measure = measured.found, measured.missing, measured.measure

    subgoals: np.ndarray | None = None
    try:
        subgoals = imagined_subgoals(model, held_out)
    except (WorldMetricsError, ValueError, NotImplementedError) as error:
        missing["policy_subgoal"] = str(error)

    if latent is not None:

        def error_by_horizon() -> dict[str, Any]:
            rolled = metrics.roll_out(predictor(model), present, latent)
            entry = metrics.feature_error(rolled, future, present, held_out.horizon_s, scale, episodes, seed=seed)
            entry["latent_actions"] = "inferred from the true frames"
            if subgoals is not None:
                own = metrics.feature_error(
                    subgoals[:, None], future[:, :1], present, held_out.horizon_s[:1], scale, episodes, seed=seed
                )
                entry["policy"] = {key: own[key][0] for key in ("model", "copy_present", "ratio", "ratio_ci95")}
            return entry

        measure("feature_error", error_by_horizon)
        missing["action_dependence.action"] = "This model imagines under latent actions, not under robot actions."
    else:
        missing["feature_error"] = "This model has no latent action that its world model could be driven by."

    state = torch.cat([window.state for window in held_out.windows]).float().numpy()
    hand, has_hand = list(end_effector), motion(held_out, end_effector) is not None
    where = dict(positions or {})
    if has_hand:
        where = {"end_effector": state[:, 0, hand]} | where
    for name, position in where.items():
        try:  # each by itself: one that stands still must not cost the others
            probes = encoder_probe(present, {name: position}, episodes, seed=seed)
            result["encoder_probe"] = result.get("encoder_probe", {}) | probes
        except ProbeError as reason:
            missing[f"encoder_probe.{name}"] = str(reason)
    if not has_hand:
        missing["encoder_probe.end_effector"] = "The held-out windows carry no end-effector position."

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
    latent = held_out.latent
    if latent is None:
        return [], []
    rng, scale, predict = np.random.default_rng(seed), held_out.scale, predictor(model)
    present, future = held_out.present, held_out.future
    frames = held_out.frames[:, held_out.pair :]
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
    grid = held_out.grid or _square(present.shape[1])

    def subgoal(i: int) -> SubgoalExample:
        patch = metrics.mover_patch(present[i], future[i], scale)
        return SubgoalExample(
            now=frames[i, 0],
            later=frames[i, 1],
            grid=grid,
            patch=patch,
            similarity_predicted=metrics.similarity_map(present[i], subgoals[i], patch, scale),
            similarity_true=metrics.similarity_map(present[i], future[i], patch, scale),
            change_predicted=scale.distance_map(present[i], subgoals[i]),
            change_true=change[i],
            label=tasks[i],
            horizon_s=held_out.pair_s,
            source=source,
        )

    def transfer(i: int, j: int) -> TransferExample:
        applied = predict(present[j : j + 1], latent[i : i + 1])[0]
        return TransferExample(
            source_now=frames[i, 0],
            source_later=frames[i, 1],
            source_change=change[i],
            target_now=frames[j, 0],
            target_change=scale.distance_map(present[j], applied),
            grid=grid,
            source_label=tasks[i],
            target_label=tasks[j],
        )

    groups, _ = scenes(held_out)
    if len(np.unique(groups)) < 2:  # no other scene to transfer to
        return [subgoal(i) for i in chosen], []
    partners = metrics.other_episode(groups, seed)
    return [subgoal(i) for i in chosen], [transfer(i, int(partners[i])) for i in chosen]


def _square(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise WorldMetricsError(f"{tokens} patches are no square grid: give the encoder a `grid`.")
    return side, side
