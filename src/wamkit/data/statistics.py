"""Statistics of states and actions, and the affine map that a normalisation mode makes of them.

Rules for dimensions without a spread:

- A dimension whose scale (the standard deviation, or half the range) is below ``min_scale`` is a constant: it
  normalises to 0 and comes back as its centre (mean, or middle of the range).
- Where the quantiles coincide and minimum and maximum do not (a gripper that is rarely used), the minimum and the
  maximum stand in for the quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wamkit.errors import WamkitError

MODES: dict[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""LeRobot's normalisation modes and the statistics that each needs."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MIN_SCALE = 1e-4
"""Below it, in the dimension's own units, a scale is noise."""

Statistics = Mapping[str, np.ndarray]
"""Name of a statistic -> value for each dimension ``[D]``."""


class NormalizationError(WamkitError):
    """Statistics that are missing, not finite or of another size, or a mode that does not exist."""


@dataclass(frozen=True)
class Affine:
    """y = (x - centre) * inverse_scale and x = y * scale + centre; both scales are 0 where x is a constant."""

    centre: np.ndarray
    scale: np.ndarray
    inverse_scale: np.ndarray


def statistics_of(values: np.ndarray) -> dict[str, np.ndarray]:
    """Exact statistics over rows.

    Args:
        values: ``[rows, D]``, finite, at least one row.

    Returns:
        mean, std, min, max, q01, q10, q50, q90, q99: float64 ``[D]``, and count ``[1]``.

    Raises:
        NormalizationError: If there is no row or a value is not finite.
    """
    if values.ndim != 2 or len(values) == 0:
        raise NormalizationError(f"Statistics need rows of vectors; got an array of shape {values.shape}.")
    exact = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(exact).all(axis=0))
    if len(bad):
        raise NormalizationError(
            f"Statistics of values that are not finite (dimensions {bad.tolist()}): mend the data."
        )
    found = {"mean": exact.mean(0), "std": exact.std(0), "min": exact.min(0), "max": exact.max(0)}
    levels = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return found | dict(zip(QUANTILES, levels, strict=True)) | {"count": np.array([len(exact)], np.int64)}


def merged(features: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics over the rows of several recordings of one embodiment.

    Args:
        features: For each recording: feature -> values ``[rows, D]``.

    Raises:
        NormalizationError: If the recordings differ in dimensions, or values are not finite.
    """
    found = {}
    for feature in {name for recording in features for name in recording}:
        parts = [recording[feature] for recording in features if feature in recording]
        if len({part.shape[-1] for part in parts}) > 1:
            raise NormalizationError(
                f"Recordings of one embodiment differ in the dimensions of {feature!r} "
                f"({sorted({part.shape[-1] for part in parts})}): give one of them another statistics key."
            )
        found[feature] = statistics_of(np.concatenate(parts))
    return found


def affine_of(found: Mapping[str, np.ndarray], mode: str, min_scale: float, where: str) -> Affine:
    """The map that a mode makes of statistics.

    Args:
        found: What was measured.
        mode: A key of :data:`MODES`.
        min_scale: Below it, a dimension is a constant.
        where: Whose statistics, for messages.

    Raises:
        NormalizationError: If a needed statistic is missing, not finite or of another size.
    """
    needed = MODES[mode]
    missing = [name for name in needed if name not in found]
    if missing:
        raise NormalizationError(
            f"The statistics of {where} lack {', '.join(missing)}, which {mode} needs: compute them again, or choose "
            "another mode."
        )
    shapes = {found[name].shape for name in (needed or found) if name != "count"}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise NormalizationError(f"The statistics of {where} differ in shape ({sorted(shapes)}): compute them again.")
    for name in needed:
        bad = np.flatnonzero(~np.isfinite(found[name].astype(np.float64)))
        if len(bad):
            raise NormalizationError(
                f"The statistic {name} of {where} is not finite in dimensions {bad.tolist()}: mend the data and "
                "compute it again."
            )
    if mode == "IDENTITY":
        size = next(iter(shapes))
        return Affine(np.zeros(size), np.ones(size), np.ones(size))
    first, second = (found[name].astype(np.float64) for name in needed)
    if mode == "MEAN_STD":
        centre, scale = first, second
    else:
        if mode != "MIN_MAX":
            first, second = _without_empty_ranges(found, first, second, min_scale, where)
        centre, scale = (first + second) / 2, (second - first) / 2
    bad = np.flatnonzero(scale < 0)
    if len(bad):
        raise NormalizationError(f"The statistics of {where} have a negative spread in dimensions {bad.tolist()}.")
    constant = scale < min_scale
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=~constant)
    return Affine(centre, np.where(constant, 0.0, scale), inverse)


def _without_empty_ranges(
    found: Mapping[str, np.ndarray], low: np.ndarray, high: np.ndarray, min_scale: float, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum in those dimensions whose quantiles coincide."""
    empty = (high - low) / 2 < min_scale
    if not empty.any():
        return low, high
    if "min" not in found or "max" not in found:
        raise NormalizationError(
            f"The quantiles of {where} coincide in dimensions {np.flatnonzero(empty).tolist()}, and the statistics "
            "lack the min and max that stand in for them: compute them again, or choose MEAN_STD."
        )
    low = np.where(empty, found["min"].astype(np.float64), low)
    high = np.where(empty, found["max"].astype(np.float64), high)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NormalizationError(f"min and max of {where} are not finite: mend the data and compute them again.")
    return low, high


def apply_affine[A: (np.ndarray, Tensor)](values: A, affine: Affine, *, inverse: bool) -> A:
    """The map, or its inverse, on ``[..., >= D]``; what lies beyond D is padding and becomes 0. Returns float32."""
    size = len(affine.centre)
    factor = affine.scale if inverse else affine.inverse_scale
    if isinstance(values, Tensor):
        # float64 where the device has it: the round trip then errs by float32's rounding alone.
        exact = values[..., :size].to(torch.float64 if values.device.type != "mps" else torch.float32)
        centre, scale = (
            torch.as_tensor(part, dtype=exact.dtype, device=exact.device) for part in (affine.centre, factor)
        )
        result = (exact * scale + centre if inverse else (exact - centre) * scale).float()
        return torch.nn.functional.pad(result, (0, values.shape[-1] - size))
    exact_array = np.asarray(values)[..., :size].astype(np.float64)
    changed = exact_array * factor + affine.centre if inverse else (exact_array - affine.centre) * factor
    padding = [(0, 0)] * (changed.ndim - 1) + [(0, values.shape[-1] - size)]
    return np.pad(changed, padding).astype(np.float32) if values.shape[-1] > size else changed.astype(np.float32)
