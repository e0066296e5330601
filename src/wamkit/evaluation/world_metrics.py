"""What a world model knows, measured on arrays: any model can be plugged in.

Raw cosine or squared distance between patch features says little: most of a token is the same in every frame.
Every error here is therefore taken on features from which each patch's mean over the data was subtracted, in
units of each channel's standard deviation about it: 0 is perfect, 1 is what the mean picture would score,
2 what a random other frame would. Every interval is a bootstrap over episodes, not over frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from wamkit.errors import WamkitError

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features [n, N, D] and what conditions them (latent actions or actions, [n, ...]) to future features [n, N, D]."""


class WorldMetricsError(WamkitError):
    """Data on which a world model cannot be measured."""


@dataclass(frozen=True)
class FeatureScale:
    """The standardisation of features: the mean of each patch and channel, and the spread of each channel.

    The spread is pooled over patches: a patch that never changes (a wall) would otherwise turn the smallest
    prediction noise into an arbitrarily large error.
    """

    mean: Float[np.ndarray, "N D"]
    std: Float[np.ndarray, "D"]

    @classmethod
    def fit(cls, features: Float[np.ndarray, "n N D"]) -> FeatureScale:
        """Statistics of some frames; channels that never change are given infinite spread, so they count nothing."""
        features = _finite(features, "features")
        if features.ndim != 3 or len(features) < 2:
            raise WorldMetricsError(f"Features must be [n, N, D] of at least two frames; got {features.shape}.")
        mean = features.mean(axis=0)
        std = np.sqrt(((features - mean) ** 2).mean(axis=(0, 1)))
        if not std.max() > 0:
            raise WorldMetricsError("The features are the same in every frame: the encoder has collapsed or froze.")
        return cls(mean, np.where(std > 1e-6 * std.max(), std, np.inf))

    def standardise(self, features: Float[np.ndarray, "*batch N D"]) -> Float[np.ndarray, "*batch N D"]:
        """Features about their patch's mean, in standard deviations."""
        return (np.asarray(features, dtype=np.float32) - self.mean) / self.std

    def distance_map(
        self, a: Float[np.ndarray, "*batch N D"], b: Float[np.ndarray, "*batch N D"]
    ) -> Float[np.ndarray, "*batch N"]:
        """Mean squared standardised distance of each patch."""
        gap = (np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)) / self.std
        return (gap**2).sum(axis=-1) / max(1, int(np.isfinite(self.std).sum()))

    def error(
        self, a: Float[np.ndarray, "*batch N D"], b: Float[np.ndarray, "*batch N D"]
    ) -> Float[np.ndarray, "*batch"]:
        """Mean of `distance_map` over the patches."""
        return self.distance_map(a, b).mean(axis=-1)


def _finite(values: Any, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise WorldMetricsError(f"The {what} hold values that are not finite: the model or its input is broken.")
    return array


def ratio_interval(
    numerator: Float[np.ndarray, "n"],
    denominator: Float[np.ndarray, "n"],
    episodes: Int[np.ndarray, "n"],
    *,
    root: bool = False,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, tuple[float, float]]:
    """The ratio of two sums over samples, with a 95 % bootstrap interval over whole episodes.

    Args:
        numerator: One value for each sample.
        denominator: One value for each sample, of positive sum.
        episodes: Episode of each sample; at least two.
        root: Give the square root of the ratio (of two mean squares: a ratio of amplitudes).
        seed: Fixes the resampling.
        draws: Resamples.
    """
    _, inverse = np.unique(episodes, return_inverse=True)
    count = int(inverse.max()) + 1
    if count < 2:
        raise WorldMetricsError("An interval needs samples of at least two held-out episodes: hold out more.")
    above, below = (np.bincount(inverse, np.asarray(v, np.float64), count) for v in (numerator, denominator))
    if not below.sum() > 0:
        raise WorldMetricsError("A ratio to zero was asked for: the reference quantity never differs from zero.")
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=draws)
    resampled_below = weights @ below
    resampled = (weights @ above)[resampled_below > 0] / resampled_below[resampled_below > 0]
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = above.sum() / below.sum()
    if root:
        value, low, high = np.sqrt([value, low, high])
    return float(value), (float(low), float(high))


def other_episode(episodes: Int[np.ndarray, "n"], seed: int = 0) -> Int[np.ndarray, "n"]:
    """For each sample, the index of a sample of another episode, drawn evenly among them."""
    episodes = np.asarray(episodes)
    if len(np.unique(episodes)) < 2:
        raise WorldMetricsError("Swapping needs samples of at least two held-out episodes: hold out more.")
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(episodes != episode)) for episode in episodes])


def roll_out(
    predict: Predict, present: Float[np.ndarray, "n N D"], conditions: Float[np.ndarray, "n T *c"]
) -> Float[np.ndarray, "n T N D"]:
    """Open loop: each step starts from the model's own last prediction, and sees no further frame."""
    current, predicted = present, []
    for step in range(conditions.shape[1]):
        current = predict(current, conditions[:, step])
        predicted.append(current)
    return np.stack(predicted, axis=1)


def feature_error(
    predicted: Float[np.ndarray, "n T N D"],
    actual: Float[np.ndarray, "n T N D"],
    present: Float[np.ndarray, "n N D"],
    horizon_s: Float[np.ndarray, "T"],
    scale: FeatureScale,
    episodes: Int[np.ndarray, "n"],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Error against horizon, beside what copying the present would score.

    Returns:
        ``horizon_s``, ``model``, ``copy_present`` (standardised mean squared errors by horizon), ``ratio`` and
        ``ratio_ci95`` (model over copy: below 1 the model knows more than that nothing changes), ``n``,
        ``episodes``.
    """
    predicted, actual = _finite(predicted, "predictions"), _finite(actual, "true futures")
    model = scale.error(predicted, actual)
    copy = scale.error(np.asarray(present, dtype=np.float32)[:, None], actual)
    ratios = [ratio_interval(model[:, t], copy[:, t], episodes, seed=seed) for t in range(model.shape[1])]
    return {
        "horizon_s": [float(t) for t in horizon_s],
        "model": [float(v) for v in model.mean(axis=0)],
        "copy_present": [float(v) for v in copy.mean(axis=0)],
        "ratio": [value for value, _ in ratios],
        "ratio_ci95": [list(interval) for _, interval in ratios],
        "n": len(model),
        "episodes": len(np.unique(episodes)),
    }


def action_dependence(
    predict: Predict,
    present: Float[np.ndarray, "n N D"],
    conditions: Float[np.ndarray, "n *c"],
    actual: Float[np.ndarray, "n N D"],
    scale: FeatureScale,
    episodes: Int[np.ndarray, "n"],
    *,
    shuffles: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether the model listens to (latent) actions: its error when each sample gets another episode's.

    Returns:
        ``error``, ``error_shuffled``, their ``ratio`` with ``ci95`` (1: the model ignores them), ``n``,
        ``shuffles``.
    """
    own = scale.error(_finite(predict(present, conditions), "predictions"), actual)
    swapped = np.mean(
        [
            scale.error(_finite(predict(present, conditions[other_episode(episodes, seed + k)]), "predictions"), actual)
            for k in range(shuffles)
        ],
        axis=0,
    )
    ratio, interval = ratio_interval(swapped, own, episodes, seed=seed)
    return {
        "error": float(own.mean()),
        "error_shuffled": float(swapped.mean()),
        "ratio": ratio,
        "ci95": list(interval),
        "n": len(own),
        "shuffles": shuffles,
    }


def action_change(
    own: Float[np.ndarray, "n K A"],
    swapped: Float[np.ndarray, "n K A"],
    resampled: Float[np.ndarray, "n K A"],
    partner: Int[np.ndarray, "n"],
    episodes: Int[np.ndarray, "n"],
    *,
    valid: Bool[np.ndarray, "n K"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How far actions move when one input is another episode's: whether the action head believes that input.

    Used for the subgoal (all else kept) and for the instruction. ``own``, ``swapped`` and the partner's own
    actions share the sampling noise, so that all of the change is the swap's; ``resampled`` differs from ``own``
    in the noise alone.

    Args:
        own: Actions from each sample's own inputs.
        swapped: The same with the input of sample ``partner[i]``.
        resampled: ``own`` again under fresh noise.
        partner: Where the swapped input came from.
        episodes: Episode of each sample.
        valid: Which actions count; a pair counts where both do.
        seed: Fixes the bootstrap.

    Returns:
        ``change``, ``spread`` (between a sample and its partner) and ``noise`` (root mean squares, in the actions'
        units), ``change_over_spread`` with ``ci95`` (0: ignored; 1: moves as far as another episode's actions
        lie), ``change_over_noise`` (None for a policy without noise), ``toward_partner`` (which share of the way
        to the partner's actions the change goes), ``n``.
    """
    own, swapped, resampled = (_finite(a, "actions") for a in (own, swapped, resampled))
    mask = np.ones(own.shape[:2], bool) if valid is None else np.asarray(valid)
    mask = mask & mask[partner]
    weight = mask[..., None] / np.maximum(mask.sum(axis=1), 1)[:, None, None] / own.shape[-1]
    to_swapped, to_partner = swapped - own, own[partner] - own
    change = (to_swapped**2 * weight).sum(axis=(1, 2))
    spread = (to_partner**2 * weight).sum(axis=(1, 2))
    noise = ((resampled - own) ** 2 * weight).sum(axis=(1, 2))
    ratio, interval = ratio_interval(change, spread, episodes, root=True, seed=seed)
    return {
        "change": float(np.sqrt(change.mean())),
        "spread": float(np.sqrt(spread.mean())),
        "noise": float(np.sqrt(noise.mean())),
        "change_over_spread": ratio,
        "ci95": list(interval),
        "change_over_noise": float(np.sqrt(change.sum() / noise.sum())) if noise.sum() > 0 else None,
        "toward_partner": float((to_swapped * to_partner * weight).sum() / spread.sum()),
        "n": len(own),
    }


def moving_patches(change: Float[np.ndarray, "n N"], share: float = 0.1) -> Bool[np.ndarray, "n N"]:
    """The patches of each sample that truly changed most: where the arm (and what it moves) was or came to be."""
    kept = max(1, round(share * change.shape[1]))
    mask = np.zeros(change.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(-change, axis=1)[:, :kept], True, axis=1)
    return mask


def effect_region(
    effect: Float[np.ndarray, "n N"], arm: Bool[np.ndarray, "n N"], true_change: Float[np.ndarray, "n N"]
) -> dict[str, Any]:
    """Whether the latent action moves the arm, or a fixed region of the picture wherever the arm is.

    Args:
        effect: For each patch, how far the prediction moves through the latent action.
        arm: Which patches show the arm; from segmentation, or `moving_patches` of the true change.
        true_change: For each patch, how far the frame truly changed.

    Returns:
        ``ratio`` (mean effect on the arm over mean effect off it), ``ratio_bias_removed`` (the same after each
        patch's effect is divided by its mean over the other samples: near 1 says that the effect only marks a
        region), ``correlation`` (mean correlation of effect maps between samples) and ``control_correlation``
        (of the true changes), ``n``.
    """
    effect, true_change = _finite(effect, "effect maps"), _finite(true_change, "true changes")
    n = len(effect)
    if n < 3 or arm.all() or not arm.any():
        raise WorldMetricsError("The effect region needs at least three samples, and patches on and off the arm.")
    if not effect.max() > 0:
        raise WorldMetricsError("The latent action changes no prediction at all, so its effect has no region.")

    def ratio(maps: np.ndarray) -> float:
        return float(maps[arm].mean() / max(float(maps[~arm].mean()), 1e-12))

    def correlation(maps: np.ndarray) -> float:
        centred = maps - maps.mean(axis=1, keepdims=True)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        return float(((unit @ unit.T).sum() - (unit**2).sum()) / (n * (n - 1)))

    shared = (effect.sum(axis=0) - effect) / (n - 1)
    return {
        "ratio": ratio(effect),
        # The floor keeps a patch that no other sample touches from an unbounded quotient.
        "ratio_bias_removed": ratio(effect / np.maximum(shared, 0.05 * shared.mean())),
        "correlation": correlation(effect),
        "control_correlation": correlation(true_change),
        "n": n,
    }


def similarity_map(
    present: Float[np.ndarray, "N D"], future: Float[np.ndarray, "N D"], patch: int, scale: FeatureScale
) -> Float[np.ndarray, "N"]:
    """LaWAM's appendix B: cosine similarity of one patch of the present with every patch of a subgoal.

    The shared mean over all patches is taken out first (it would make every similarity nearly 1); the mean of
    each single patch stays in, since the patch sought may have come to rest where another usually is.
    """
    shared = scale.mean.mean(axis=0)
    query = (np.asarray(present[patch], np.float32) - shared) / scale.std
    keys = (np.asarray(future, np.float32) - shared) / scale.std
    return keys @ query / np.maximum(np.linalg.norm(keys, axis=-1) * np.linalg.norm(query), 1e-12)


def mover_patch(present: Float[np.ndarray, "N D"], future: Float[np.ndarray, "N D"], scale: FeatureScale) -> int:
    """A patch that shows the arm now: one that will change, and is unlike what is usually there already."""
    unusual = (scale.standardise(present) ** 2).mean(axis=-1)
    return int(np.argmax(np.sqrt(scale.distance_map(present, future) * unusual)))
