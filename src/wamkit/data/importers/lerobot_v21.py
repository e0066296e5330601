"""LeRobotDataset v2.0 and v2.1 (one parquet and one video file for each episode) into v3.

Videos are re-encoded (sources are often AV1 with long gaps between key frames); frames are taken by the time stamps of
their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data.embodiments import EMBODIMENTS
from wamkit.data.importers.base import (
    ImportFailure,
    ImportOptions,
    ImportSummary,
    Layout,
    Progress,
    Recording,
    Rows,
    even_size,
    read_source,
    read_source_lines,
    refuse_options,
    write_recordings,
)
from wamkit.data.lerobot_files import IMAGE_PREFIX, SUCCESS_FEATURE, dimension_names
from wamkit.data.video import frames_at

_BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


def understands(source: Path) -> bool:
    """Whether a folder is a LeRobotDataset v2."""
    info = source / "meta/info.json"
    return info.is_file() and str(read_source(info).get("codebase_version", "")).startswith("v2")


def import_lerobot_v21(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports a LeRobotDataset v2.0 or v2.1 with all its numeric columns.

    Args:
        source: Folder with ``meta/info.json``.
        output_dir: Where the data set goes.
        options: Which episodes, by number. With ``skip_broken``, those whose files are missing are left out.
        progress: Called after each episode.

    Returns:
        What was imported.

    Raises:
        ImportFailure: If files are missing (all such episodes are named) or damaged.
    """
    refuse_options("lerobot_v21", options, fps="it is in meta/info.json", task="each episode has its own instruction")
    info = read_source(source / "meta/info.json")
    features: dict[str, dict[str, Any]] = info["features"]
    videos = {key: f for key, f in features.items() if f["dtype"] == "video" and key.startswith(IMAGE_PREFIX)}
    stored = [key for key, feature in features.items() if feature["dtype"] == "image"]
    if stored:
        raise ImportFailure(f"{source} stores {stored[0]!r} as images in parquet files: convert them to video first.")
    columns = {
        key: feature
        for key, feature in features.items()
        if feature["dtype"] not in ("video", "string") and key not in _BOOKKEEPING | {SUCCESS_FEATURE}
    }
    extra = {key: feature for key, feature in columns.items() if key not in ("observation.state", "action")}
    robot = str(info.get("robot_type") or "custom")
    layout = Layout(
        fps=int(info["fps"]),
        cameras={key.removeprefix(IMAGE_PREFIX): even_size(*f["shape"][:2]) for key, f in videos.items()},
        embodiment=options.embodiment or _embodiment(source, robot),
        state_names=_names(columns, "observation.state"),
        action_names=_names(columns, "action"),
        extra_features={key: {**feature, "shape": tuple(feature["shape"])} for key, feature in extra.items()},
        record_success=SUCCESS_FEATURE in features,
        notes=(f"robot_type {robot!r}, LeRobotDataset {info['codebase_version']}",),
    )
    recordings = []
    for entry in read_source_lines(source / "meta/episodes.jsonl"):
        number = int(entry["episode_index"])
        numbers = {"episode_chunk": number // int(info.get("chunks_size", 1000)), "episode_index": number}
        data = source / info["data_path"].format(**numbers)
        paths = {key: source / info["video_path"].format(video_key=key, **numbers) for key in videos}
        recordings.append(
            Recording(
                name=str(number),
                load=lambda entry=entry, data=data, paths=paths: _load(entry, data, paths, columns, features, layout),
                missing=tuple(path for path in (data, *paths.values()) if not path.is_file()),
            )
        )
    return write_recordings("lerobot_v21", source, output_dir, layout, recordings, options, progress=progress)


def _embodiment(source: Path, robot: str) -> str:
    """The longest known name that the robot's type, or else the folder's name, begins with."""
    for text in (robot, source.resolve().name):
        found = [name for name in EMBODIMENTS if text.lower().replace("-", "_").startswith(name)]
        if found:
            return max(found, key=len)
    return "custom"


def _names(columns: Mapping[str, Mapping[str, Any]], key: str) -> tuple[str, ...]:
    return dimension_names(key, columns[key]) if key in columns else ()


def _load(
    entry: Mapping[str, Any],
    data: Path,
    videos: Mapping[str, Path],
    columns: Mapping[str, Mapping[str, Any]],
    features: Mapping[str, Mapping[str, Any]],
    layout: Layout,
) -> Rows:
    table = _read(data, ["timestamp", *columns, *([SUCCESS_FEATURE] if layout.record_success else [])])
    if table.num_rows != int(entry["length"]):
        raise ImportFailure(f"{data} has {table.num_rows} rows, meta/episodes.jsonl says {entry['length']}: restore it")
    times = np.asarray(table.column("timestamp").to_pylist(), dtype=np.float64).reshape(-1)
    values = {}
    for key, feature in columns.items():
        try:
            array = np.asarray(table.column(key).to_pylist(), dtype=np.dtype(feature["dtype"]))
            values[key] = array.reshape(table.num_rows, *feature["shape"])
        except ValueError as error:
            raise ImportFailure(f"{key!r} in {data} has not the shape {feature['shape']}: restore it") from error
    success = bool(np.any(table.column(SUCCESS_FEATURE).to_pylist())) if layout.record_success else False
    tasks = entry.get("tasks") or [""]
    cameras = {key.removeprefix(IMAGE_PREFIX): path for key, path in videos.items()}
    return Rows(
        length=table.num_rows,
        images=_images(cameras, times, layout.fps),
        columns=values,
        task=str(tasks[0]),
        success=success,
    )


def _images(cameras: Mapping[str, Path], times: np.ndarray, fps: int) -> Iterator[Mapping[str, np.ndarray]]:
    streams = {camera: frames_at(path, times, tolerance_s=0.501 / fps) for camera, path in cameras.items()}
    for _ in times:
        yield {camera: next(stream)[1] for camera, stream in streams.items()}


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ImportFailure(f"{path} cannot be read ({reason}): it is truncated or damaged; restore it") from error
