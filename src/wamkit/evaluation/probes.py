"""Linear probes: how much of a physical quantity can be read off a representation with one matrix.

Ridge regression, cross-validated by episode: frames of one episode look alike, so a split by frame would let the
probe recognise the episode instead of reading the quantity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from wamkit.errors import WamkitError

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""Ridge penalties tried, relative to the mean squared singular value of the training features."""


class ProbeError(WamkitError):
    """Data that a probe cannot be fitted or scored on."""


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe explains out of fold.

    ``r2`` is the mean over target dimensions of 1 - squared error / squared deviation from the training mean;
    ``control`` is the same with the inputs dealt to other samples, where there is nothing to read.
    """

    r2: float
    ci95: tuple[float, float]
    by_target: dict[str, float]
    control: float
    n_train: int
    n_test: int
    episodes: int
    folds: int
    constant_targets: tuple[str, ...]
    """Target dimensions that never change in this data; they have no R2 and are left out."""

    def to_json(self) -> dict[str, Any]:
        """The object as it stands in ``imagine.json``."""
        return {
            "r2": self.r2,
            "ci95": list(self.ci95),
            "by_target": self.by_target,
            "control": self.control,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "episodes": self.episodes,
            "folds": self.folds,
            "constant_targets": list(self.constant_targets),
        }


def grouped_folds(
    episodes: Int[np.ndarray, "n"], folds: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of train and test samples such that no episode is on both sides; at most one fold an episode."""
    names = rng.permutation(np.unique(episodes))
    if len(names) < 2:
        raise ProbeError("A probe needs at least two held-out episodes, to fit on one and score on another.")
    for held_out in np.array_split(names, min(folds, len(names))):
        test = np.isin(episodes, held_out)
        yield np.flatnonzero(~test), np.flatnonzero(test)


def _coordinates(inputs: np.ndarray) -> np.ndarray:
    """The inputs rotated into at most n columns: ridge regression sees only their inner products."""
    if inputs.shape[1] <= len(inputs):
        return inputs
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _ridge(
    inputs: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray, penalties: Sequence[float]
) -> np.ndarray:
    """Predictions [penalties, test, targets] of ridge regressions, centred on the training samples."""
    centre, mean = inputs[train].mean(axis=0), targets[train].mean(axis=0)
    left, singular, right = np.linalg.svd(inputs[train] - centre, full_matrices=False)
    seen, read = left.T @ (targets[train] - mean), (inputs[test] - centre) @ right.T
    scale = max(float((singular**2).mean()), 1e-12)
    gains = [singular / (singular**2 + penalty * scale) for penalty in penalties]
    return np.stack([mean + read @ (gain[:, None] * seen) for gain in gains])


def _out_of_fold(
    inputs: np.ndarray, targets: np.ndarray, episodes: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Squared errors and squared deviations [n, targets] out of fold, mean training size, and number of folds."""
    rng = np.random.default_rng(seed)
    error, deviation, sizes = np.zeros_like(targets), np.zeros_like(targets), []
    for train, test in grouped_folds(episodes, folds, rng):
        # The penalty is chosen inside the training episodes; the test fold never has a say.
        penalty = PENALTIES[len(PENALTIES) // 2]
        if len(np.unique(episodes[train])) > 1:
            losses = np.zeros(len(PENALTIES))
            for fit, check in grouped_folds(episodes[train], 3, rng):
                guesses = _ridge(inputs, targets, train[fit], train[check], PENALTIES)
                losses += ((guesses - targets[train[check]]) ** 2).sum(axis=(1, 2))
            penalty = PENALTIES[int(losses.argmin())]
        guess = _ridge(inputs, targets, train, test, (penalty,))[0]
        error[test] = (guess - targets[test]) ** 2
        deviation[test] = (targets[train].mean(axis=0) - targets[test]) ** 2
        sizes.append(len(train))
    return error, deviation, float(np.mean(sizes)), len(sizes)


@dataclass(frozen=True)
class ProbeErrors:
    """How far a probe was off, sample by sample and out of fold, in the targets' own units; constant ones left out."""

    probe: Float[np.ndarray, "n T"]
    mean: Float[np.ndarray, "n T"]
    """Of always saying the training samples' mean."""


def linear_probe(
    inputs: Float[np.ndarray, "n P"],
    targets: Float[np.ndarray, "n T"],
    episodes: Int[np.ndarray, "n"],
    *,
    names: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """The result of `probe_with_errors`."""
    return probe_with_errors(inputs, targets, episodes, names=names, folds=folds, seed=seed)[0]


def probe_with_errors(
    inputs: Float[np.ndarray, "n P"],
    targets: Float[np.ndarray, "n T"],
    episodes: Int[np.ndarray, "n"],
    *,
    names: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> tuple[ProbeResult, ProbeErrors]:
    """Cross-validated ridge regression from a representation to a physical quantity.

    Args:
        inputs: One row for each sample; columns are brought to unit variance.
        targets: What to read off, in any units.
        episodes: Episode of each sample.
        names: Names of the target dimensions.
        folds: Outer folds, fewer where there are fewer episodes.
        seed: Deals episodes to folds, and samples in the control and the bootstrap.

    Raises:
        ProbeError: For shapes that do not match, values that are not finite, or targets that never change.
    """
    inputs = np.asarray(inputs, dtype=np.float64)
    targets = np.asarray(targets, dtype=np.float64)
    episodes = np.asarray(episodes)
    if inputs.ndim != 2 or targets.ndim != 2 or not len(inputs) == len(targets) == len(episodes):
        raise ProbeError(
            f"A probe needs inputs [n, P], targets [n, T] and episodes [n]; got {inputs.shape}, {targets.shape} and "
            f"{episodes.shape}."
        )
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        raise ProbeError("A probe's inputs or targets are not finite: look for NaN in the features or the states.")
    labels = list(names) if names is not None else [str(i) for i in range(targets.shape[1])]
    if len(labels) != targets.shape[1]:
        raise ProbeError(f"{len(labels)} names for {targets.shape[1]} target dimensions: give one name for each.")
    moving = targets.std(axis=0) > 1e-9 * np.maximum(1.0, np.abs(targets).max(axis=0))
    if not moving.any():
        raise ProbeError("The probe's targets never change in this data, so there is nothing to explain.")
    scale = targets[:, moving].std(axis=0)
    targets = targets[:, moving] / scale  # each dimension counts the same

    spread = inputs.std(axis=0)
    live = spread > 1e-9 * max(float(spread.max()), 1e-12)
    scaled = (inputs[:, live] - inputs[:, live].mean(axis=0)) / spread[live]
    rotated = _coordinates(scaled)

    error, deviation, n_train, used = _out_of_fold(rotated, targets, episodes, folds, seed)
    rng = np.random.default_rng([seed, 1])
    dealt = rng.permutation(len(inputs))
    control_error, control_deviation, _, _ = _out_of_fold(rotated[dealt], targets, episodes, folds, seed)

    by_target = 1.0 - error.sum(axis=0) / deviation.sum(axis=0)
    _, inverse = np.unique(episodes, return_inverse=True)
    count = int(inverse.max()) + 1
    sums = [np.stack([np.bincount(inverse, column, count) for column in part.T], axis=1) for part in (error, deviation)]
    draws = rng.multinomial(count, np.full(count, 1.0 / count), size=1000)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (1.0 - (draws @ sums[0]) / (draws @ sums[1])).mean(axis=1)
    low, high = np.nanquantile(np.where(np.isfinite(resampled), resampled, np.nan), [0.025, 0.975])
    kept = [name for name, keep in zip(labels, moving, strict=True) if keep]
    result = ProbeResult(
        r2=float(by_target.mean()),
        ci95=(float(low), float(high)),
        by_target=dict(zip(kept, map(float, by_target), strict=True)),
        control=float((1.0 - control_error.sum(axis=0) / control_deviation.sum(axis=0)).mean()),
        n_train=round(n_train),
        n_test=len(inputs),
        episodes=count,
        folds=used,
        constant_targets=tuple(name for name, keep in zip(labels, moving, strict=True) if not keep),
    )
    return result, ProbeErrors(probe=scale * np.sqrt(error), mean=scale * np.sqrt(deviation))


def latent_action_probe(
    latent_actions: Float[np.ndarray, "n Q Z"],
    displacement: Float[np.ndarray, "n T"],
    episodes: Int[np.ndarray, "n"],
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How much of the end effector's motion over the horizon is linear in the latent action."""
    latent_actions = np.asarray(latent_actions)
    flat = latent_actions.reshape(len(latent_actions), -1)
    return linear_probe(flat, displacement, episodes, names=names, seed=seed).to_json()


def encoder_probe(
    features: Float[np.ndarray, "n N D"],
    positions: Mapping[str, Float[np.ndarray, "n T"]],
    episodes: Int[np.ndarray, "n"],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether one frame's features say where things are: one probe for each named position.

    Args:
        features: Patch features of single frames; all patches enter, since their mean forgets where.
        positions: Such as ``{"end_effector": [n, 3], "object": [n, 3]}``.
        episodes: Episode of each frame.
        seed: See `linear_probe`.
    """
    features = np.asarray(features)
    flat = features.reshape(len(features), -1)
    return {name: linear_probe(flat, target, episodes, seed=seed).to_json() for name, target in positions.items()}
