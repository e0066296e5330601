"""A mixture of recordings: from a global draw counter to windows, the same in every process and after a resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from wamkit.data.draws import Schedule, mix, permuted, uniform
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.data.statistics import merged
from wamkit.data.windows import EntryWindows, MixtureEntry, WindowError, WindowSpec
from wamkit.errors import suggest
from wamkit.types import Window

__all__ = ["Mixture", "MixtureEntry", "WindowSpec", "fit_normalizer"]

# What a hashed number is for; distinct constants keep the streams apart.
_SCHEDULE, _ORDER, _JITTER, _VIEWS = range(1, 5)


class Mixture:
    """Windows drawn from several recordings.

    Draw k picks a recording by weight and takes that recording's next window; each recording's windows come in epochs
    without replacement, every epoch in another order. All of it follows from (seed, k).

    Args:
        entries: The recordings.
        spec: What a window holds.
        normalizer: Applied to states and actions; None leaves physical units.
        seed: Of the draws.

    Raises:
        WindowError: If an entry does not fit the spec, or has no window at all.
    """

    def __init__(
        self, entries: Sequence[MixtureEntry], spec: WindowSpec, normalizer: Normalizer | None = None, seed: int = 0
    ):
        if not entries:
            raise WindowError("A mixture needs at least one recording.")
        self.entries = tuple(entries)
        self.spec, self.normalizer, self.seed = spec, normalizer, seed
        self.cameras = self._choose_cameras()
        self._windows = [EntryWindows(entry, spec, self.cameras, normalizer) for entry in self.entries]
        for entry, windows in zip(self.entries, self._windows, strict=True):
            if len(windows) == 0:
                raise WindowError(
                    f"{entry.source.root} has no window of this kind: its {len(entry.chosen_episodes())} chosen "
                    "episodes are too short; shorten the horizon, or set past_end to 'clamp'."
                )
        self.state_dim = max(windows.state_dim for windows in self._windows)
        self.action_dim = max(windows.action_dim for windows in self._windows)
        longest = max(windows.chunk for windows in self._windows)
        self.max_actions = longest if spec.max_actions is None or spec.chunk_s is None else spec.max_actions
        if self.max_actions < longest:
            raise WindowError(
                f"max_actions is {spec.max_actions} and the longest chunk has {longest}: raise max_actions."
            )
        self._schedule = Schedule(self._weights(), int(mix(seed, _SCHEDULE)))

    def __len__(self) -> int:
        """Distinct windows over all recordings."""
        return sum(len(windows) for windows in self._windows)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of draws that each recording really gets."""
        return tuple((self._schedule.quotas / self._schedule.quotas.sum()).tolist())

    def locate(self, counters: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where draws begin: (entry, episode, row), int64 ``[n]`` each."""
        counters = np.asarray(counters, np.int64)
        labels, nth = self._schedule.locate(counters)
        episodes, rows = np.empty_like(labels), np.empty_like(labels)
        for label in np.unique(labels).tolist():
            here, windows = labels == label, self._windows[label]
            epoch, place = np.divmod(nth[here], len(windows))
            episodes[here], rows[here] = windows.locate(permuted(place, len(windows), self.seed, _ORDER, label, epoch))
        return labels, episodes, rows

    def describe(self, first: int, count: int) -> str:
        """Which episodes draws come from, for an error message."""
        labels, episodes, _ = self.locate(np.arange(first, first + count))
        parts = []
        for label in np.unique(labels).tolist():
            numbers = sorted(set(episodes[labels == label].tolist()))
            shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
            parts.append(f"{self.entries[label].source.root.name} (episodes {shown})")
        return "; ".join(parts)

    def window(self, counters: np.ndarray | Sequence[int]) -> Window:
        """The windows of some draws, collated.

        Args:
            counters: Draw numbers ``[B]``.
        """
        counters = np.asarray(counters, np.int64)
        return self._collate(counters, *self.locate(counters))

    def windows_at(self, entry: int, episodes: Sequence[int], rows: Sequence[int]) -> Window:
        """Windows of one recording that begin at given rows, without jitter: for evaluation.

        Args:
            entry: Which recording.
            episodes: ``[B]``.
            rows: Row of the present within its episode ``[B]``.
        """
        labels = np.full(len(episodes), entry, np.int64)
        return self._collate(None, labels, np.asarray(episodes, np.int64), np.asarray(rows, np.int64))

    def fingerprint(self) -> str:
        """Changes when any draw would: with the recordings, the spec, the weights, the statistics or the seed."""
        described = [
            [windows.fingerprint() for windows in self._windows],
            asdict(self.spec),
            self._schedule.quotas.tolist(),
            self.normalizer.statistics_hash() if self.normalizer is not None else None,
            self.seed,
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    # Inside

    def _choose_cameras(self) -> tuple[str, ...]:
        mapped = [name for entry in self.entries for name in entry.camera_map]
        unmapped = [c for entry in self.entries for c in entry.source.cameras if c not in entry.camera_map.values()]
        known = tuple(dict.fromkeys(mapped + unmapped))
        for camera in self.spec.cameras or ():
            if camera not in known:
                raise WindowError(
                    f"No recording has a camera {camera!r}.{suggest(camera, known)} Name the recording's in "
                    "camera_map, or None where it has none."
                )
        return known if self.spec.cameras is None else self.spec.cameras

    def _weights(self) -> list[float]:
        given = [entry.weight for entry in self.entries]
        if all(weight is None for weight in given):
            return [float(len(windows)) for windows in self._windows]
        weights = [weight for weight in given if weight is not None]
        if len(weights) != len(given) or not all(np.isfinite(w) and w > 0 for w in weights):
            raise WindowError(f"The weights are {given}; give every recording a positive one, or none of them any.")
        return weights

    def _collate(
        self, counters: np.ndarray | None, labels: np.ndarray, episodes: np.ndarray, rows: np.ndarray
    ) -> Window:
        spec, size, frames = self.spec, len(labels), len(self.spec.frame_offsets_s)
        whole = len(np.unique(labels)) == 1
        height, width = spec.size
        pictures: dict[str, np.ndarray] = {}
        features: dict[str, np.ndarray] = {}
        frame_valid = {camera: np.zeros((size, frames), bool) for camera in self.cameras}
        frame_times = np.zeros((size, frames), np.float32)
        state, state_valid = (
            np.zeros((size, frames, self.state_dim), np.float32),
            np.zeros((size, frames, self.state_dim), bool),
        )
        actions = np.zeros((size, self.max_actions, self.action_dim), np.float32)
        action_valid = np.zeros(actions.shape, bool)
        rates, embodiments = np.zeros(size, np.float32), np.zeros(size, np.int64)
        tasks = [""] * size
        for label in np.unique(labels).tolist():
            here = np.flatnonzero(labels == label)
            own = self._windows[label]
            at_episodes, at_rows = episodes[here], rows[here]
            draws = None if counters is None else counters[here]
            numbers, found, valid = own.frames_of(at_episodes, at_rows, self._jitter(draws, len(here)))
            frame_times[here] = (found - at_rows[:, None]) / own.entry.source.fps
            rates[here], embodiments[here] = own.entry.rate_hz, own.embodiment
            for position, task in zip(here.tolist(), own.tasks(at_episodes), strict=True):
                tasks[position] = task
            for camera in own.cameras:
                frame_valid[camera][here] = valid & ~own.absent(camera, at_episodes)[:, None]
                _place(pictures, camera, own.pictures_of(camera, at_episodes, numbers), here, size, whole)
                if camera in own.feature_cameras:
                    views = self._views(draws, len(here), own)
                    values = own.features_of(camera, at_episodes, numbers, views)
                    _place(features, camera, values, here, size, whole)
            if own.states is not None:
                state[here, :, : own.state_dim] = own.states_of(at_episodes, found)
                state_valid[here, :, : own.state_dim] = valid[..., None]
            if own.actions is not None:
                values, inside = own.chunk_of(at_episodes, at_rows)
                actions[here, : own.chunk, : own.action_dim] = values
                action_valid[here, : own.chunk, : own.action_dim] = inside[..., None]
        for camera in self.cameras:
            if camera not in pictures:
                pictures[camera] = np.zeros((size, frames, 3, height, width), np.uint8)
        times = np.arange(self.max_actions, dtype=np.float32) / rates[:, None]
        tensors = {camera: torch.from_numpy(pictures[camera]) for camera in self.cameras}
        return Window(
            frames=tensors,
            frame_times=torch.from_numpy(frame_times),
            frame_valid={camera: torch.from_numpy(value) for camera, value in frame_valid.items()},
            state=torch.from_numpy(state),
            state_valid=torch.from_numpy(state_valid),
            actions=torch.from_numpy(actions),
            action_valid=torch.from_numpy(action_valid),
            action_times=torch.from_numpy(times),
            rate_hz=torch.from_numpy(rates),
            task=tuple(tasks),
            embodiment=torch.from_numpy(embodiments),
            features={camera: torch.from_numpy(value) for camera, value in features.items()},
        )

    def _jitter(self, counters: np.ndarray | None, size: int) -> np.ndarray:
        offsets = np.zeros((size, len(self.spec.frame_offsets_s)))
        if counters is not None and self.spec.frame_jitter_s > 0:
            drawn = uniform(self.seed, _JITTER, counters[:, None], np.arange(1, offsets.shape[1]))
            offsets[:, 1:] = (2 * drawn - 1) * self.spec.frame_jitter_s
        return offsets

    def _views(self, counters: np.ndarray | None, size: int, windows: EntryWindows) -> np.ndarray:
        """Different views for each window, int64 ``[n, V]``; one view alone is the frames as they are."""
        wanted = self.spec.feature_views
        store = windows.entry.feature_store
        assert store is not None
        if wanted == 1 or counters is None:
            return np.tile(np.arange(wanted), (size, 1))
        drawn = mix(self.seed, _VIEWS, counters[:, None], np.arange(store.views))
        return np.argsort(drawn, axis=1, kind="stable")[:, :wanted]


def fit_normalizer(
    entries: Sequence[MixtureEntry], *, state_mode: str = "MEAN_STD", action_mode: str = "MEAN_STD", **settings: Any
) -> Normalizer:
    """Exact statistics over the chosen episodes of the entries, for each statistics key.

    Args:
        entries: The recordings of a mixture (their training episodes).
        state_mode: See `wamkit.data.statistics.MODES`.
        action_mode: The same.
        settings: Passed on to :class:`Normalizer`.

    Raises:
        WindowError: If a column has wrong dimensions or is not finite.
        NormalizationError: If a mode is unknown, or recordings under one key differ in dimensions.
    """
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    for entry in entries:
        rows.setdefault(entry.statistics_key, []).append(entry.feature_values())
    statistics = {key: merged(values) for key, values in rows.items()}
    heard = {key: {entry.rate_hz for entry in entries if entry.statistics_key == key} for key in rows}
    rates = {key: next(iter(found)) for key, found in heard.items() if len(found) == 1}
    return Normalizer(statistics, {STATE: state_mode, ACTION: action_mode}, rates=rates, **settings)


def _place(
    into: dict[str, np.ndarray], name: str, values: np.ndarray, here: np.ndarray, size: int, whole: bool
) -> None:
    """Values at their places in the batch; where they are the whole batch, without a copy."""
    if whole:
        into[name] = values
        return
    if name not in into:
        into[name] = np.zeros((size, *values.shape[1:]), values.dtype)
    into[name][here] = values
