"""Windows in physical time: what a stage asks for, and how one recording answers.

Time is continuous here, rows are not: a frame at offset dt is the truly recorded one nearest to t + dt, action i of a
robot at h Hz takes effect at t + i / h, and a chunk of tau seconds holds round(tau * h) actions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wamkit.data.cache import FeatureStore, FrameStore
from wamkit.data.embodiments import embodiment_id
from wamkit.data.frames import ResizeRule, nearest, new_frame_rows, size_of
from wamkit.data.latent_store import LatentStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.errors import WamkitError, suggest

Combine = Literal["sum", "last"]


class WindowError(WamkitError):
    """A window that cannot be cut from these recordings; the message says which setting to change."""


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """What a stage wants to see of each moment."""

    frame_offsets_s: tuple[float, ...] = (0.0,)
    """Seconds from the present; the first is 0. Negative ones look back."""
    last_offset_by_embodiment: tuple[tuple[str, float], ...] = ()
    """Pairs (embodiment, last offset) where it is another: LaWAM looks 0.4 s ahead in human video, 1.2 s elsewhere."""
    frame_jitter_s: float = 0.0
    """Offsets but the first are moved by up to this, drawn uniformly for each window."""
    chunk_s: float | None = None
    """tau, the physical length of an action chunk; None: no actions."""
    valid_steps: Literal["round", "floor"] = "round"
    """How tau * rate becomes a number of actions."""
    max_actions: int | None = None
    """K, to which chunks are padded; None: the longest of the mixture."""
    cameras: tuple[str, ...] | None = None
    """The model's names for cameras; None: all that the mixture's recordings have."""
    resolution: int | tuple[int, int] = 128
    """Side, or (height, width), of the frame stores."""
    resize: ResizeRule = "stretch"
    """How frames of another shape get there; see `wamkit.data.frames.resize_frames`."""
    feature_views: int = 0
    """Views from the feature store: 0 none, 1 the frames as they are, more: that many different ones of the store's."""
    starts: Literal["new_frames", "rows"] = "new_frames"
    """Where windows may begin: where the frame shows the present, or at any row (the frame may then be old)."""
    past_end: Literal["clamp", "drop"] = "clamp"
    """At an episode's end: repeat its last frame, marked invalid, or drop starts whose frames or actions do not fit."""

    def __post_init__(self) -> None:
        if not self.frame_offsets_s or self.frame_offsets_s[0] != 0.0:
            raise WindowError(f"frame_offsets_s is {self.frame_offsets_s}; it must begin with 0.0, the present.")
        if self.chunk_s is not None and self.chunk_s <= 0:
            raise WindowError(f"chunk_s is {self.chunk_s}; give a positive length in seconds, or None for no actions.")
        if self.frame_jitter_s < 0 or self.feature_views < 0:
            raise WindowError("frame_jitter_s and feature_views must not be negative.")
        if self.last_offset_by_embodiment and len(self.frame_offsets_s) < 2:
            raise WindowError("last_offset_by_embodiment needs a second frame: give its usual offset too.")
        for name, _ in self.last_offset_by_embodiment:
            embodiment_id(name)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of frames."""
        return size_of(self.resolution)

    def offsets(self, embodiment: str) -> np.ndarray:
        """Seconds from the present, float64 ``[T]``, for one embodiment."""
        offsets = np.array(self.frame_offsets_s, np.float64)
        own = dict(self.last_offset_by_embodiment)
        if embodiment in own:
            offsets[-1] = own[embodiment]
        return offsets

    def action_count(self, rate_hz: float) -> int:
        """Valid actions of a chunk at a control rate.

        Raises:
            WindowError: If the chunk is too short for even one.
        """
        if self.chunk_s is None:
            return 0
        exact = self.chunk_s * rate_hz
        # 0.3 s at 20 Hz is 5.999... in floating point: floor what is meant, not what is stored.
        count = int(np.round(exact)) if self.valid_steps == "round" else int(np.floor(exact + 1e-4))
        if count < 1:
            raise WindowError(
                f"A chunk of {self.chunk_s:g} s holds no action at {rate_hz:g} Hz: set chunk_s to at least "
                f"{1 / rate_hz:g}."
            )
        return count


@dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """One recording in a mixture: its stores, and under which view it is seen."""

    source: LeRobotSource
    frame_store: FrameStore | None = None
    """None only where no frames are wanted."""
    feature_store: FeatureStore | LatentStore | None = None
    weight: float | None = None
    """How often it is drawn, relative to the others; None: by its number of windows. All entries or none have one."""
    camera_map: Mapping[str, str | None] = field(default_factory=dict)
    """The model's camera -> the recording's, or None where it is known to have none; others keep their names."""
    episodes: tuple[int, ...] | None = None
    """Which episodes; None: all."""
    stride: int = 1
    """View the recording at fps / stride: one action for every ``stride`` rows."""
    combine: Combine | tuple[Combine, ...] = "last"
    """How actions combine under a stride, for all dimensions or for each: ``sum`` changes, ``last`` keeps a target."""
    statistics: str | None = None
    """Key of its normalisation statistics; None: the embodiment, with ``@<rate>Hz`` under a stride."""

    @property
    def rate_hz(self) -> float:
        """Control rate of this view."""
        return self.source.fps / self.stride

    @property
    def statistics_key(self) -> str:
        """See ``statistics``."""
        if self.statistics is not None:
            return self.statistics
        return self.source.embodiment if self.stride == 1 else f"{self.source.embodiment}@{self.rate_hz:g}Hz"

    def chosen_episodes(self) -> tuple[int, ...]:
        """The episodes that are drawn from."""
        return tuple(range(len(self.source.episodes))) if self.episodes is None else self.episodes

    def feature_values(self) -> dict[str, np.ndarray]:
        """State and action rows of the chosen episodes ``[rows, D]``, actions combined: what statistics are made of."""
        source, values = self.source, {}
        if source.state_names is not None:
            column = _vectors(source, STATE)
            values[STATE] = np.concatenate([column[source.episodes[e].rows] for e in self.chosen_episodes()])
        if source.action_names is not None:
            column = _vectors(source, ACTION)
            parts = []
            for episode in self.chosen_episodes():
                rows = source.episodes[episode].rows
                starts = np.arange(rows.start, rows.stop - self.stride + 1)
                parts.append(self.combined(column, starts[:, None] + np.arange(self.stride)))
            values[ACTION] = np.concatenate(parts)
        return values

    def combined(self, column: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """One action from each group of ``stride`` rows.

        Args:
            column: ``[all rows, A]``.
            rows: int ``[..., stride]``.

        Returns:
            ``[..., A]``.
        """
        last = column[rows[..., -1]]
        if self.stride == 1:
            return last
        kinds = (self.combine,) * column.shape[-1] if isinstance(self.combine, str) else self.combine
        summed = np.array([kind == "sum" for kind in kinds])
        return np.where(summed, column[rows].sum(axis=-2), last) if summed.any() else last


class EntryWindows:
    """All windows of one mixture entry under one spec, by number.

    Raises:
        WindowError: If the recording, its stores and the spec do not fit together.
    """

    def __init__(self, entry: MixtureEntry, spec: WindowSpec, cameras: Sequence[str], normalizer: Normalizer | None):
        self.entry, self.spec, self.normalizer = entry, spec, normalizer
        source = entry.source
        named = {camera: entry.camera_map.get(camera, camera) for camera in cameras}
        self.cameras = {name: own for name, own in named.items() if own is not None and own in source.cameras}
        _check_entry(entry, spec, cameras, self.cameras)
        self.embodiment = embodiment_id(source.embodiment)
        self.offsets = spec.offsets(source.embodiment)
        self.states = None if source.state_names is None else _vectors(source, STATE)
        self.actions = None if source.action_names is None or spec.chunk_s is None else _vectors(source, ACTION)
        self.chunk = 0 if self.actions is None else spec.action_count(entry.rate_hz)
        if normalizer is not None:
            for feature, column in ((STATE, self.states), (ACTION, self.actions)):
                if column is not None and normalizer.dimensions(feature, entry.statistics_key) != column.shape[1]:
                    raise WindowError(
                        f"{feature!r} of {source.root} has {column.shape[1]} dimensions and its statistics "
                        f"({entry.statistics_key!r}) {normalizer.dimensions(feature, entry.statistics_key)}: "
                        "fit the normaliser to these recordings."
                    )
        episodes = [source.episodes[number] for number in entry.chosen_episodes()]
        self._length = np.array([episode.length for episode in source.episodes], np.int64)
        self._from_row = np.array([episode.from_row for episode in source.episodes], np.int64)
        self._tasks = [episode.task for episode in source.episodes]
        self._absent = {
            name: np.array([own in episode.absent_cameras for episode in source.episodes])
            for name, own in self.cameras.items()
        }
        longest = max((episode.length for episode in episodes), default=0)
        self._frame_rows = new_frame_rows(longest, source.fps, source.video_rate_hz)
        self._frame_counts = np.searchsorted(self._frame_rows, self._length)
        self._reach = 0.5 * np.ceil(source.fps / source.video_rate_hz - 1e-6) + 1e-6
        self._episodes = np.array([episode.index for episode in episodes], np.int64)
        counts = [self._start_count(episode.length) for episode in episodes]
        self._ends = np.cumsum(np.array(counts, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def feature_cameras(self) -> tuple[str, ...]:
        """The model's cameras under whose names windows carry features: the store's; one of whole clips has one."""
        store = self.entry.feature_store
        if not self.spec.feature_views or store is None:
            return ()
        names = tuple(name for name, own in self.cameras.items() if own in store.cameras)
        return names[:1] if isinstance(store, LatentStore) else names

    @property
    def state_dim(self) -> int:
        """S of this recording; 0 without states."""
        return 0 if self.states is None else self.states.shape[1]

    @property
    def action_dim(self) -> int:
        """A of this recording; 0 without actions."""
        return 0 if self.actions is None else self.actions.shape[1]

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(episode, row within it) at which windows begin: int64 ``[n]`` each."""
        place = np.searchsorted(self._ends, numbers, side="right")
        start = numbers - np.where(place > 0, self._ends[place - 1], 0)
        return self._episodes[place], self._frame_rows[start] if self.spec.starts == "new_frames" else start

    def tasks(self, episodes: np.ndarray) -> list[str]:
        """Instructions of episodes."""
        return [self._tasks[episode] for episode in episodes.tolist()]

    def frames_of(self, episodes: np.ndarray, rows: np.ndarray, jitter_s: np.ndarray) -> tuple[np.ndarray, ...]:
        """Which frames windows see.

        Args:
            episodes: int64 ``[n]``.
            rows: Row of the present, int64 ``[n]``.
            jitter_s: Added to the offsets, ``[n, T]``.

        Returns:
            (number of the frame in its episode, its row, whether it is the one asked for), ``[n, T]`` each.
        """
        fps = self.entry.source.fps
        wanted = rows[:, None] + (self.offsets + jitter_s) * fps
        number = nearest(self._frame_rows, wanted)
        # The present is the newest frame that exists by then, never one from the future.
        number[:, 0] = np.searchsorted(self._frame_rows, rows, side="right") - 1
        number = np.minimum(number, self._frame_counts[episodes][:, None] - 1)
        found = self._frame_rows[number]
        valid = np.abs(found - wanted) <= self._reach
        valid[:, 0] = True
        return number, found, valid

    def chunk_of(self, episodes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Action chunks ``[n, K, A]`` in normalised units and their validity ``[n, K]``, K the entry's own count."""
        assert self.actions is not None
        stride = self.entry.stride
        steps = np.arange(self.chunk * stride).reshape(self.chunk, stride)
        relative = rows[:, None, None] + steps
        last = self._length[episodes][:, None, None] - 1
        valid = relative[..., -1] <= last[..., 0]
        values = self.entry.combined(self.actions, self._from_row[episodes][:, None, None] + np.minimum(relative, last))
        return np.where(valid[..., None], self._normalized(ACTION, values), 0.0), valid

    def states_of(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """States ``[n, T, S]`` in normalised units at rows ``[n, T]``."""
        assert self.states is not None
        return self._normalized(STATE, self.states[self._from_row[episodes][:, None] + rows])

    def pictures_of(self, camera: str, episodes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Frames uint8 ``[n, T, 3, H, W]`` by the model's camera name."""
        store = self.entry.frame_store
        assert store is not None
        return store.gather(self.cameras[camera], store.first[episodes][:, None] + numbers)

    def features_of(self, camera: str, episodes: np.ndarray, numbers: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Features ``[n, V, T, N, D]`` of views ``[n, V]``."""
        store = self.entry.feature_store
        assert store is not None
        places = store.frame_store.first[episodes][:, None] + numbers
        gathered = [store.gather(self.cameras[camera], views[:, v], places) for v in range(views.shape[1])]
        return np.stack(gathered, axis=1)

    def absent(self, camera: str, episodes: np.ndarray) -> np.ndarray:
        """Where an episode lacks a camera of its recording: bool ``[n]``."""
        return self._absent[camera][episodes]

    def fingerprint(self) -> str:
        """Changes with the recording, the chosen episodes and the view."""
        entry = self.entry
        described = [
            entry.source.fingerprint(),
            [int(episode) for episode in entry.chosen_episodes()],
            sorted(self.cameras.items()),
            [entry.stride, entry.combine, entry.statistics_key],
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _normalized(self, feature: str, values: np.ndarray) -> np.ndarray:
        if self.normalizer is None:
            return values.astype(np.float32)
        return self.normalizer.normalize(feature, values, self.entry.statistics_key)

    def _start_count(self, length: int) -> int:
        last = length - 1
        if self.spec.past_end == "drop":
            ahead = float(self.offsets.max(initial=0.0)) + (self.spec.frame_jitter_s if len(self.offsets) > 1 else 0.0)
            newest = self._frame_rows[self._frame_rows < length].max(initial=0)
            last = min(last, int(np.floor(newest + self._reach - ahead * self.entry.source.fps)))
            if self.chunk:
                last = min(last, length - self.chunk * self.entry.stride)
        if last < 0:
            return 0
        return (
            int(np.searchsorted(self._frame_rows, last, side="right")) if self.spec.starts == "new_frames" else last + 1
        )


def _check_entry(entry: MixtureEntry, spec: WindowSpec, cameras: Sequence[str], present: Mapping[str, str]) -> None:
    source = entry.source
    for name, own in entry.camera_map.items():
        if name not in cameras:
            raise WindowError(f"camera_map names {name!r}, which the windows do not have.{suggest(name, cameras)}")
        if own is not None and own not in source.cameras:
            raise WindowError(f"{source.root} has no camera {own!r}.{suggest(own, source.cameras)}")
    if entry.stride < 1:
        raise WindowError(f"stride is {entry.stride}; it must be at least 1.")
    if not isinstance(entry.combine, str) and len(entry.combine) != len(source.action_names or ()):
        raise WindowError(
            f"combine names {len(entry.combine)} dimensions and the actions of {source.root} have "
            f"{len(source.action_names or ())}: give one for each, or one for all."
        )
    stores: dict[str, Any] = {"frame_store": entry.frame_store} if present else {}
    if spec.feature_views and present:
        stores["feature_store"] = entry.feature_store
    for name, store in stores.items():
        if store is None:
            raise WindowError(f"The entry of {source.root} needs a {name} for cameras {', '.join(present)}: build one.")
        missing = [own for own in present.values() if own not in store.cameras]
        # A stage may read the features of some cameras alone, and its store then holds no others.
        if missing and (len(missing) == len(present) or not isinstance(store, FeatureStore)):
            raise WindowError(f"The {name} of {source.root} has no camera {missing[0]!r}: build it with that camera.")
    if present and entry.frame_store is not None:
        if entry.frame_store.resolution != spec.size or entry.frame_store.resize != spec.resize:
            raise WindowError(
                f"The frame store of {source.root} holds frames of {entry.frame_store.resolution} "
                f"({entry.frame_store.resize}) and the windows want {spec.size} ({spec.resize}): build it alike."
            )
        for episode in entry.chosen_episodes():
            if entry.frame_store.first[episode] < 0:
                raise WindowError(
                    f"The frame store of {source.root} lacks episode {episode}: build it with that episode."
                )
    if spec.feature_views and isinstance(entry.feature_store, LatentStore):
        entry.feature_store.check(spec.offsets(source.embodiment), spec.frame_jitter_s, spec.starts)
    if entry.feature_store is not None and spec.feature_views > entry.feature_store.views:
        raise WindowError(
            f"{spec.feature_views} views are wanted and the feature store of {source.root} holds "
            f"{entry.feature_store.views}: build it with more."
        )


def _vectors(source: LeRobotSource, name: str) -> np.ndarray:
    """A column as ``[rows, D]``, checked to be finite and to have the named dimensions."""
    column = source.column(name)
    column = column[:, None] if column.ndim == 1 else column
    names = (source.state_names if name == STATE else source.action_names) or ()
    if column.ndim != 2 or column.shape[1] != len(names):
        raise WindowError(
            f"{name!r} of {source.root} has shape {column.shape[1:]} and {len(names)} names: mend meta/info.json or "
            "record again."
        )
    bad = ~np.isfinite(column).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        episode = next((e.index for e in source.episodes if e.rows.start <= row < e.rows.stop), None)
        raise WindowError(
            f"{name!r} of episode {episode} in {source.root} is not finite ({int(bad.sum())} rows in all): correct the "
            "recording, or leave the episode out."
        )
    return column
