"""Normalisation of states and actions, its inverse, and its statistics, in one object that travels with a checkpoint.

The modes are LeRobot's, and so are the files: LeRobot loads ``policy_preprocessor.json`` and
``policy_postprocessor.json`` of a policy with one embodiment and computes the same numbers. Unlike LeRobot, nothing
passes through where a statistic is missing: that is an error.

Dimensions without a spread follow the rules in :mod:`wamkit.data.statistics`. Normalised values are never clamped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wamkit.data.statistics import MIN_SCALE, MODES, Affine, NormalizationError, Statistics, affine_of, apply_affine
from wamkit.errors import suggest
from wamkit.json_files import read_json, write_json
from wamkit.tensor_files import read_tensors

STATE = "observation.state"
ACTION = "action"
PREPROCESSOR = "policy_preprocessor"
POSTPROCESSOR = "policy_postprocessor"
_STEPS = {PREPROCESSOR: "normalizer_processor", POSTPROCESSOR: "unnormalizer_processor"}
_DEVICE = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
_BEFORE: dict[str, list[dict[str, Any]]] = {
    PREPROCESSOR: [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        _DEVICE,
    ],
    POSTPROCESSOR: [],
}
"""The steps that LeRobot's commands expect to find before the normaliser, to override them."""
_AFTER: dict[str, list[dict[str, Any]]] = {PREPROCESSOR: [], POSTPROCESSOR: [_DEVICE]}
_SEVERAL = "wamkit_multi_embodiment_processor"  # no step of LeRobot: it refuses the file instead of misreading it
_MEND = "use a complete checkpoint folder."
_EXTRA = "wamkit"


class Normalizer:
    """Maps states and actions of each embodiment to normalised units and back.

    Args:
        statistics: Embodiment (or another key, see ``MixtureEntry.statistics``) -> feature -> :data:`Statistics`.
            A feature that an embodiment does not have is absent.
        modes: Feature -> one of :data:`MODES`, for :data:`STATE` and :data:`ACTION`.
        rates: Embodiment -> control rate in Hz.
        min_scale: See :mod:`wamkit.data.statistics`.

    Raises:
        NormalizationError: If a mode is unknown, or a statistic that it needs is missing or not finite.
    """

    def __init__(
        self,
        statistics: Mapping[str, Mapping[str, Statistics]],
        modes: Mapping[str, str] | None = None,
        *,
        rates: Mapping[str, float] | None = None,
        min_scale: float = MIN_SCALE,
    ):
        self.modes = {STATE: "MEAN_STD", ACTION: "MEAN_STD"} | dict(modes or {})
        for feature, mode in self.modes.items():
            if feature not in (STATE, ACTION):
                raise NormalizationError(f"No normalised feature is {feature!r}.{suggest(feature, (STATE, ACTION))}")
            if mode not in MODES:
                raise NormalizationError(f"Unknown normalisation mode {mode!r}.{suggest(mode.upper(), MODES)}")
        self.rates = {embodiment: float(rate) for embodiment, rate in (rates or {}).items()}
        self.min_scale = min_scale
        self.statistics: dict[str, dict[str, dict[str, np.ndarray]]] = {
            embodiment: {
                feature: {name: np.atleast_1d(np.asarray(value)) for name, value in found.items()}
                for feature, found in features.items()
                if feature in self.modes
            }
            for embodiment, features in statistics.items()
        }
        self._affine = {
            (embodiment, feature): affine_of(found, self.modes[feature], min_scale, f"{feature!r} of {embodiment!r}")
            for embodiment, features in self.statistics.items()
            for feature, found in features.items()
        }

    @property
    def embodiments(self) -> tuple[str, ...]:
        """The keys of :attr:`statistics`."""
        return tuple(self.statistics)

    def rate_hz(self, embodiment: str) -> float:
        """Control rate at which an embodiment was recorded.

        Raises:
            NormalizationError: If it is not known.
        """
        if embodiment not in self.rates:
            raise NormalizationError(
                f"The control rate of {embodiment!r} is not known (recorded at several, or written by LeRobot)."
                f"{suggest(embodiment, self.rates)}"
            )
        return self.rates[embodiment]

    def dimensions(self, feature: str, embodiment: str) -> int:
        """How many dimensions a feature has."""
        return len(self._find(feature, embodiment).centre)

    def constant_dimensions(self, feature: str, embodiment: str) -> tuple[int, ...]:
        """Dimensions that normalise to 0 for want of a spread."""
        return tuple(np.flatnonzero(self._find(feature, embodiment).scale == 0).tolist())

    def normalize[A: (np.ndarray, Tensor)](self, feature: str, values: A, embodiment: str) -> A:
        """Physical to normalised units.

        Args:
            feature: :data:`STATE` or :data:`ACTION`.
            values: numpy or torch ``[..., D]``; dimensions beyond the embodiment's own are padding and become 0.
            embodiment: A key of :attr:`statistics`.

        Returns:
            float32 of the same kind and shape.

        Raises:
            NormalizationError: If there are no statistics for it, or it has fewer dimensions than they do.
        """
        affine = self._fitting(feature, values, embodiment)
        return apply_affine(values, affine, inverse=False)

    def unnormalize[A: (np.ndarray, Tensor)](self, feature: str, values: A, embodiment: str) -> A:
        """Normalised to physical units, the inverse of :meth:`normalize`: ``[..., D]`` without padded dimensions."""
        affine = self._fitting(feature, values, embodiment)
        return apply_affine(values[..., : len(affine.centre)], affine, inverse=True)

    def normalize_state[A: (np.ndarray, Tensor)](self, state: A, embodiment: str) -> A:
        """:meth:`normalize` for states ``[..., S]``."""
        return self.normalize(STATE, state, embodiment)

    def unnormalize_state[A: (np.ndarray, Tensor)](self, state: A, embodiment: str) -> A:
        """:meth:`unnormalize` for states ``[..., S]``."""
        return self.unnormalize(STATE, state, embodiment)

    def normalize_action[A: (np.ndarray, Tensor)](self, actions: A, embodiment: str) -> A:
        """:meth:`normalize` for actions ``[..., A]``."""
        return self.normalize(ACTION, actions, embodiment)

    def unnormalize_action[A: (np.ndarray, Tensor)](self, actions: A, embodiment: str) -> A:
        """:meth:`unnormalize` for actions ``[..., A]``."""
        return self.unnormalize(ACTION, actions, embodiment)

    def has(self, feature: str, embodiment: str) -> bool:
        """Whether there are statistics for this feature of this embodiment."""
        return (embodiment, feature) in self._affine

    def statistics_hash(self) -> str:
        """SHA-256 over modes and statistics: equal where two normalisers compute the same numbers."""
        text = json.dumps([self.modes, self.min_scale, _as_lists(self.statistics)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # Files

    def save(self, directory: Path | str) -> None:
        """Writes ``policy_preprocessor.json``, ``policy_postprocessor.json`` and their safetensors files.

        Where there is one embodiment they are whole pipelines of LeRobot's. Where there are several, LeRobot refuses
        them (an unknown step), since its normaliser knows only one.
        """
        from safetensors.numpy import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        extra = {
            "modes": self.modes,
            "min_scale": self.min_scale,
            "rates": self.rates,
            "statistics": _as_lists(self.statistics),
        }
        single = len(self.statistics) == 1
        for name, step in _STEPS.items():
            entry: dict[str, Any] = {"registry_name": step if single else _SEVERAL}
            tensors: dict[str, np.ndarray] = {}
            if single:
                (embodiment,) = self.statistics
                entry["config"] = self._lerobot_config(embodiment)
                entry["state_file"] = f"{name}_step_{len(_BEFORE[name])}_{step}.safetensors"
                tensors = self._lerobot_state(embodiment, inverse=name == POSTPROCESSOR)
                save_file(tensors, directory / entry["state_file"])
            else:
                entry["config"] = {}
            steps = [*_BEFORE[name], entry, *_AFTER[name]] if single else [entry]
            described = {"name": name, "steps": steps, _EXTRA: extra}
            write_json(directory / f"{name}.json", described)

    @classmethod
    def load(cls, directory: Path | str, *, embodiment: str = "custom") -> Normalizer:
        """Reads what :meth:`save` or LeRobot wrote.

        Args:
            directory: A checkpoint's ``pretrained_model``.
            embodiment: The key for statistics that LeRobot wrote, which name none.

        Raises:
            NormalizationError: If a file is missing or broken, or a statistic is missing or not finite.
        """
        path = Path(directory) / f"{PREPROCESSOR}.json"
        described = read_json(path, NormalizationError, _MEND)
        try:
            if _EXTRA in described:
                extra = described[_EXTRA]
                return cls(extra["statistics"], extra["modes"], rates=extra["rates"], min_scale=extra["min_scale"])
            return cls(*_read_foreign(path, described, embodiment))
        except (ValueError, KeyError, TypeError) as error:
            raise NormalizationError(
                f"{path} cannot be read as normalisation statistics ({type(error).__name__}: {error}): {_MEND}"
            ) from error

    def _lerobot_config(self, embodiment: str) -> dict[str, Any]:
        kinds = {STATE: "STATE", ACTION: "ACTION"}
        return {
            "eps": 1e-8,
            "features": {
                feature: {"type": kinds[feature], "shape": [self.dimensions(feature, embodiment)]}
                for feature in self.statistics[embodiment]
            },
            "norm_map": {"VISUAL": "IDENTITY"} | {kinds[feature]: mode for feature, mode in self.modes.items()},
        }

    def _lerobot_state(self, embodiment: str, *, inverse: bool) -> dict[str, np.ndarray]:
        """Statistics under LeRobot's names, set such that its formulas give this object's numbers.

        They differ from the measured ones only where a rule of :mod:`wamkit.data.statistics` applies: a constant's
        scale is 1 on the way in (x - centre is then 0 up to ``min_scale``) and 0 on the way out.
        """
        tensors = {}
        for feature, found in self.statistics[embodiment].items():
            shown = dict(found)
            mode, affine = self.modes[feature], self._affine[embodiment, feature]
            scale = affine.scale if inverse else np.where(affine.scale == 0, 1.0, affine.scale)
            if mode == "MEAN_STD":
                shown |= {"mean": affine.centre, "std": scale}
            elif mode != "IDENTITY":
                low, high = MODES[mode]
                shown |= {low: affine.centre - scale, high: affine.centre + scale}
            tensors |= {f"{feature}.{name}": np.ascontiguousarray(v, np.float32) for name, v in shown.items()}
        return tensors

    def _find(self, feature: str, embodiment: str) -> Affine:
        if (embodiment, feature) in self._affine:
            return self._affine[embodiment, feature]
        if embodiment not in self.statistics:
            raise NormalizationError(
                f"There are no statistics for {embodiment!r}.{suggest(embodiment, self.statistics)}"
            )
        raise NormalizationError(
            f"There are no statistics of {feature!r} for {embodiment!r}: its recordings have none; fit them to data "
            "that do."
        )

    def _fitting(self, feature: str, values: np.ndarray | Tensor, embodiment: str) -> Affine:
        affine = self._find(feature, embodiment)
        if values.shape[-1] < len(affine.centre):
            raise NormalizationError(
                f"{feature!r} of {embodiment!r} has {len(affine.centre)} dimensions in the statistics and "
                f"{values.shape[-1]} here: give the values that the policy was trained on."
            )
        return affine


def _read_foreign(
    path: Path, described: Mapping[str, Any], embodiment: str
) -> tuple[dict[str, dict[str, dict[str, np.ndarray]]], dict[str, str]]:
    """Statistics and modes from a pipeline that LeRobot wrote."""
    steps = [step for step in described["steps"] if step.get("registry_name") == _STEPS[PREPROCESSOR]]
    if not steps:
        raise NormalizationError(f"{path} holds no step {_STEPS[PREPROCESSOR]!r}: it normalises nothing.")
    config = steps[0]["config"]
    kinds = {feature: described["type"] for feature, described in config["features"].items()}
    modes = {
        feature: config["norm_map"].get(kinds.get(feature, kind), "IDENTITY")
        for feature, kind in ((STATE, "STATE"), (ACTION, "ACTION"))
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    stored = read_tensors(path.parent / steps[0]["state_file"], NormalizationError, _MEND)
    for name, value in stored.items():
        feature, statistic = name.rsplit(".", 1)
        if feature in modes:
            found.setdefault(feature, {})[statistic] = value.numpy()
    for feature, kind in ((STATE, "STATE"), (ACTION, "ACTION")):
        if feature in kinds and feature not in found and modes[feature] != "IDENTITY":
            raise NormalizationError(f"{path} announces {kind} and its statistics are missing: compute them again.")
    return {embodiment: found}, modes


def _as_lists(statistics: Mapping[str, Mapping[str, Statistics]]) -> dict[str, Any]:
    return {
        embodiment: {
            feature: {name: np.asarray(value).tolist() for name, value in found.items()}
            for feature, found in features.items()
        }
        for embodiment, features in statistics.items()
    }
