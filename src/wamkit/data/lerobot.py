"""Read a LeRobotDataset v3 on disk: its episodes, its rows, and its frames by time stamp.

The format is read with pyarrow and PyAV alone. LeRobot's own reader is the reference (the tests compare the two, row
by row and frame by frame), but importing it costs seconds in every worker process; recording goes through LeRobot's
code (:mod:`wamkit.data.recorder`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wamkit.data.lerobot_files import (
    EXTRA_PATH,
    IMAGE_PREFIX,
    SUCCESS_FEATURE,
    DatasetError,
    dimension_names,
    existing,
    is_depth,
    read_episode_table,
    read_extra,
    read_info,
    read_meta,
    read_parquet,
)
from wamkit.data.video import VideoError, frames_at
from wamkit.errors import suggest

__all__ = ["EXTRA_PATH", "DatasetError", "Episode", "LeRobotSource"]

_TIME_SLACK = 1e-3  # of a row's duration; time stamps are float32 in the parquet files
_FINGERPRINT_BYTES = 1 << 16


@dataclass(frozen=True)
class Episode:
    """One recorded episode."""

    index: int
    length: int
    """Rows."""
    task: str
    """Instruction; ``""`` where there is none."""
    from_row: int
    """Its first row in :meth:`LeRobotSource.column`."""
    success: bool | None = None
    """None where the recording does not say."""
    absent_cameras: tuple[str, ...] = ()
    """Cameras of the data set that this episode lacks; their frames are black."""

    @property
    def rows(self) -> slice:
        """Its rows in :meth:`LeRobotSource.column`."""
        return slice(self.from_row, self.from_row + self.length)


@dataclass(frozen=True)
class _VideoSpan:
    path: Path
    from_s: float


class LeRobotSource:
    """One LeRobotDataset v3 on disk.

    Args:
        root: Folder that holds ``meta/``, ``data/`` and ``videos/``.
        repo_id: A name for messages and reports; default the folder's name.
        embodiment: Overrides what the data set says of itself.

    Raises:
        DatasetError: If the folder is not a complete data set of this format.
    """

    def __init__(self, root: Path | str, *, repo_id: str | None = None, embodiment: str | None = None):
        self.root = Path(root)
        self.repo_id = repo_id or self.root.name
        self.info = read_info(self.root)
        self.extra = read_extra(self.root)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        """Rows per second."""
        self.video_rate_hz = float(self.extra.get("video_rate_hz", self.fps))
        """Rate at which frames are new; below ``fps`` the frames in between are repeats."""
        self.embodiment: str = embodiment or self.extra.get("embodiment") or self.info.get("robot_type") or "custom"
        self.cameras = tuple(
            key.removeprefix(IMAGE_PREFIX)
            for key, feature in self.features.items()
            if feature["dtype"] == "video" and key.startswith(IMAGE_PREFIX) and not is_depth(feature)
        )
        self._columns: dict[str, np.ndarray] = {}
        self._table = read_episode_table(self.root)
        self._check_counts()

    def __repr__(self) -> str:
        return (
            f"LeRobotSource({str(self.root)!r}: {self.embodiment}, {len(self._table)} episodes, "
            f"{self.info['total_frames']} rows at {self.fps:g} Hz, cameras {list(self.cameras)})"
        )

    # What there is

    @cached_property
    def episodes(self) -> tuple[Episode, ...]:
        """All episodes in order; the position in the tuple is ``Episode.index``."""
        success = self.column(SUCCESS_FEATURE) if SUCCESS_FEATURE in self.features else None
        absent: dict[str, list[str]] = self.extra.get("absent_cameras", {})
        episodes = []
        for row in self._table:
            start, length = int(row["dataset_from_index"]), int(row["length"])
            episodes.append(
                Episode(
                    index=int(row["episode_index"]),
                    length=length,
                    task=self._task(row),
                    from_row=start,
                    success=None if success is None else bool(np.any(success[start : start + length])),
                    absent_cameras=tuple(absent.get(str(row["episode_index"]), ())),
                )
            )
        return tuple(episodes)

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """Names of the dimensions of ``observation.state``; None where the data set has no state."""
        return self._names("observation.state")

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Names of the dimensions of ``action``; None where the data set has no actions."""
        return self._names("action")

    @cached_property
    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """``meta/stats.json``: feature -> mean, std, min, max, q01, q10, q50, q90, q99, count -> array.

        Empty where the file is absent. This library's recorder writes them exactly, over all rows.
        """
        path = self.root / "meta/stats.json"
        if not path.is_file():
            return {}
        stats = read_meta(path)
        return {
            feature: {name: np.atleast_1d(np.asarray(value)) for name, value in values.items()}
            for feature, values in stats.items()
        }

    def resolution(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera's frames."""
        height, width = self._camera_feature(camera)["shape"][:2]
        return int(height), int(width)

    # Rows

    def column(self, name: str) -> np.ndarray:
        """One feature of all rows, read once and kept.

        Args:
            name: A feature that is not a video, such as ``"observation.state"``, ``"action"`` or ``"timestamp"``.

        Returns:
            Read-only array: ``[rows, D]`` for actions and observations (also where D = 1), ``[rows]`` for LeRobot's own
            numbers such as the time stamp.

        Raises:
            DatasetError: If there is no such feature, a data file is missing or broken, or a value has the wrong
                dimensions or is not finite.
        """
        if name not in self._columns:
            if name not in self.features or self.features[name]["dtype"] == "video":
                known = [key for key, feature in self.features.items() if feature["dtype"] != "video"]
                raise DatasetError(f"{self.root} has no column {name!r}.{suggest(name, known)}")
            parts = [self._read_column(path, name) for path in self._data_files]
            values = np.concatenate(parts) if parts else np.empty((0, *self.features[name]["shape"]), np.float32)
            if len(values) != self.info["total_frames"]:
                raise DatasetError(
                    f"{self.root} announces {self.info['total_frames']} rows and its data files hold {len(values)}: "
                    "a file under data/ is missing or left over; restore it, or record or import again."
                )
            self._refuse_non_finite(name, values)
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]

    # Frames

    def decode(self, camera: str, episode: int, timestamps: np.ndarray | Sequence[float]) -> np.ndarray:
        """Frames of an episode by time stamp.

        Args:
            camera: Short camera name.
            episode: Episode index.
            timestamps: Seconds from the episode's start ``[n]``, in any order; each gets the frame nearest to it.

        Returns:
            uint8 ``[n, H, W, 3]``.

        Raises:
            DatasetError: If a time lies outside the episode or further than half a row from any frame, or the video
                is missing or broken.
        """
        times = np.asarray(timestamps, dtype=np.float64).reshape(-1)
        frames = np.empty((len(times), *self.resolution(camera), 3), np.uint8)
        order = np.argsort(times, kind="stable")
        for position, (_, frame) in zip(order, self.iterate(camera, episode, times[order]), strict=True):
            if frame.shape != frames.shape[1:]:
                raise DatasetError(
                    f"Camera {camera!r} of episode {episode} in {self.root} has frames of {frame.shape[:2]}, and "
                    f"meta/info.json announces {frames.shape[1:3]}: import the recording again."
                )
            frames[position] = frame
        return frames

    def iterate(self, camera: str, episode: int, timestamps: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """As :meth:`decode`, frame by frame for ascending times: a long episode need not fit in memory.

        Yields:
            (presentation time in seconds from the episode's start, uint8 ``[H, W, 3]``).
        """
        length = self._row(episode)["length"]
        half = 0.5 / self.fps
        slack = half * (1.0 + _TIME_SLACK)
        outside = [time for time in timestamps.tolist() if not -slack <= time <= (length - 1) / self.fps + slack]
        if outside:
            raise DatasetError(
                f"Episode {episode} of {self.root} lasts {(length - 1) / self.fps:.3f} s; there is no frame at "
                f"{outside[0]:.3f} s."
            )
        span = self._video_span(camera, episode)
        try:
            for time, frame in frames_at(span.path, timestamps + span.from_s, tolerance_s=slack):
                yield time - span.from_s, frame
        except VideoError as error:
            raise DatasetError(f"Episode {episode}, camera {camera!r}: {error}") from error

    def verify_frames(self, cameras: Sequence[str] | None = None, *, episodes: int | None = 8, frames: int = 5) -> int:
        """Self-check: decodes a sample and compares presentation times with the rows' time stamps.

        Args:
            cameras: Which; default all.
            episodes: How many episodes, spread over the data set; None = all.
            frames: How many rows of each, always including the first and the last.

        Returns:
            The number of frames compared.

        Raises:
            DatasetError: At the first frame that is off by more than half a row; it names the episode.
        """
        checked = 0
        table = self.column("timestamp")
        count = len(self.episodes) if episodes is None else min(episodes, len(self.episodes))
        for index in np.unique(np.linspace(0, len(self.episodes) - 1, count).round().astype(int)).tolist():
            episode = self.episodes[index]
            rows = np.unique(np.linspace(0, episode.length - 1, frames).round().astype(int))
            stamps = table[episode.rows][rows].astype(np.float64)
            if np.any(np.abs(stamps - rows / self.fps) > 0.5 / self.fps):
                raise DatasetError(
                    f"Episode {index} of {self.root}: time stamps do not follow its rate of {self.fps:g} Hz; correct "
                    "the rate or record again."
                )
            for camera in cameras or self.cameras:
                checked += sum(1 for _ in self.iterate(camera, index, stamps))
        return checked

    def verify_files(self) -> None:
        """Raises a :class:`DatasetError` that lists the data and video files that episodes need and that are absent."""
        absent = {path for path in self._data_files if not path.is_file()}
        for camera in self.cameras:
            for row in self._table:
                path = self._video_span(camera, int(row["episode_index"])).path
                absent |= set() if path.is_file() else {path}
        if absent:
            names = ", ".join(str(path.relative_to(self.root)) for path in sorted(absent)[:5])
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise DatasetError(f"{self.root} lacks {names}{more}: restore these files, or record or import again.")

    def fingerprint(self) -> str:
        """A hash of what the data set holds: info, episode table, rows; of each video its size, head and tail.

        The same for a copy elsewhere; different after any change of rows, episodes or a video file.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps([self.info, self.extra], sort_keys=True).encode())
        digest.update(json.dumps(self._table, sort_keys=True, default=str).encode())
        for path in self._data_files:
            digest.update(existing(path).read_bytes())
        videos = {
            self._video_span(camera, int(row["episode_index"])).path for camera in self.cameras for row in self._table
        }
        for path in sorted(videos):
            size = existing(path).stat().st_size
            digest.update(f"{path.relative_to(self.root)}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_FINGERPRINT_BYTES))
                file.seek(max(0, size - _FINGERPRINT_BYTES))
                digest.update(file.read(_FINGERPRINT_BYTES))
        return digest.hexdigest()

    # Inside

    @cached_property
    def _data_files(self) -> tuple[Path, ...]:
        template = self.info["data_path"]
        indices = sorted({(int(row["data/chunk_index"]), int(row["data/file_index"])) for row in self._table})
        return tuple(self.root / template.format(chunk_index=chunk, file_index=file) for chunk, file in indices)

    @cached_property
    def _tasks(self) -> dict[int, str]:
        path = existing(self.root / "meta/tasks.parquet")
        table = read_parquet(path, None).to_pydict()
        texts = table.get("task", table.get("__index_level_0__"))
        if texts is None:
            raise DatasetError(f"{path} has no column 'task': restore the file, or record or import again.")
        return {int(number): text for number, text in zip(table["task_index"], texts, strict=True)}

    def _task(self, row: Mapping[str, Any]) -> str:
        if len(row["tasks"]) == 1:
            return row["tasks"][0]
        # The list of an episode with several instructions has no order; its first row decides.
        return self._tasks[int(self.column("task_index")[int(row["dataset_from_index"])])]

    def _row(self, episode: int) -> Mapping[str, Any]:
        if not 0 <= episode < len(self._table):
            raise DatasetError(f"{self.root} has episodes 0 to {len(self._table) - 1}, not {episode}.")
        return self._table[episode]

    def _camera_feature(self, camera: str) -> dict[str, Any]:
        if camera not in self.cameras:
            raise DatasetError(f"{self.root} has no camera {camera!r}.{suggest(camera, self.cameras)}")
        return self.features[IMAGE_PREFIX + camera]

    def _video_span(self, camera: str, episode: int) -> _VideoSpan:
        self._camera_feature(camera)
        key, row = IMAGE_PREFIX + camera, self._row(episode)
        name = self.info["video_path"].format(
            video_key=key,
            chunk_index=int(row[f"videos/{key}/chunk_index"]),
            file_index=int(row[f"videos/{key}/file_index"]),
        )
        return _VideoSpan(self.root / name, float(row[f"videos/{key}/from_timestamp"]))

    def _names(self, feature: str) -> tuple[str, ...] | None:
        return dimension_names(feature, self.features[feature]) if feature in self.features else None

    def _read_column(self, path: Path, name: str) -> np.ndarray:
        table = read_parquet(path, [name])
        values = table.column(name).combine_chunks()
        shape = tuple(int(size) for size in self.features[name]["shape"])
        if pa.types.is_string(values.type):
            return np.asarray(values.to_pylist(), dtype=object)
        depth = 0
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values, depth = values.flatten(), depth + 1
        flat = values.to_numpy(zero_copy_only=False)
        if depth == 0 and not name.startswith(("action", "observation.")):
            return np.array(flat)
        if len(flat) != table.num_rows * int(np.prod(shape)):
            raise DatasetError(
                f"{path}: {name!r} does not have the dimensions {shape} that meta/info.json announces "
                f"({len(flat)} values in {table.num_rows} rows): correct info.json, or record or import again."
            )
        return np.array(flat).reshape(table.num_rows, *shape)

    def _refuse_non_finite(self, name: str, values: np.ndarray) -> None:
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return
        bad = ~np.isfinite(values.reshape(len(values), -1))
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        starts = [int(entry["dataset_from_index"]) for entry in self._table]
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        raise DatasetError(
            f"{name!r} of episode {episode} in {self.root} is not finite (row {row - starts[episode]}, dimensions "
            f"{np.flatnonzero(bad[row]).tolist()}; {int(bad.any(axis=1).sum())} rows in all): correct the recording, "
            "or leave the episode out."
        )

    def _check_counts(self) -> None:
        counted = (len(self._table), sum(int(row["length"]) for row in self._table))
        announced = (self.info["total_episodes"], self.info["total_frames"])
        order = [int(row["episode_index"]) for row in self._table]
        if counted != announced or order != list(range(len(order))):
            raise DatasetError(
                f"{self.root} announces {announced[0]} episodes with {announced[1]} rows and its episode table holds "
                f"{counted[0]} with {counted[1]}: the recording was interrupted; resume it (resume=True), which keeps "
                "every finished episode."
            )
