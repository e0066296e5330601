"""Bring an interrupted recording back to its last finished episode.

While a recorder has a data set open, ``meta/recording.json`` holds the last good ``info.json``. Each finished episode
lies in files of its own that are never written again, so a process killed at any moment can only damage the files of
the episode that it was saving, and the small files of totals, which are rebuilt here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError

from wamkit.data.lerobot import LeRobotSource
from wamkit.data.lerobot_files import IMAGE_PREFIX, DatasetError
from wamkit.json_files import read_json, write_json

MARKER_PATH = Path("meta/recording.json")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def recover(root: Path) -> int:
    """Restores a data set whose recorder was killed; does nothing where no recorder had it open.

    Removes what the interrupted episode left behind and rewrites the totals. Run it only when no process records into
    the folder.

    Args:
        root: The data set.

    Returns:
        The number of finished episodes.

    Raises:
        DatasetError: If the marker itself cannot be read.
    """
    marker = root / MARKER_PATH
    if not marker.is_file():
        return len(LeRobotSource(root).episodes)
    info = read_json(marker, DatasetError, "restore the file, or record again.")
    episodes = _finished_episodes(root, info)
    _remove_leftovers(root, info, episodes)
    tasks = _restore_tasks(root, info, episodes)
    info["total_episodes"] = len(episodes)
    info["total_frames"] = sum(int(episode["length"]) for episode in episodes)
    info["total_tasks"] = tasks
    info["splits"] = {"train": f"0:{len(episodes)}"} if episodes else {}
    write_json(root / "meta/info.json", info)
    write_json(marker, info)
    if episodes:
        write_exact_statistics(root)
    else:
        (root / "meta/stats.json").unlink(missing_ok=True)
    return len(episodes)


def write_exact_statistics(root: Path) -> None:
    """Rewrites ``meta/stats.json``: numbers exactly over all rows, images merged over the episodes.

    LeRobot merges quantiles of episodes by averaging them, which is not the quantile of the rows; policies normalise
    with these numbers.
    """
    from lerobot.datasets.compute_stats import aggregate_stats

    source = LeRobotSource(root)
    stats: dict[str, dict[str, Any]] = {}
    for name, feature in source.features.items():
        if feature["dtype"] not in ("video", "image", "string"):
            stats[name] = column_statistics(source.column(name))
    cameras = [IMAGE_PREFIX + camera for camera in source.cameras]
    merged = aggregate_stats(_episode_statistics(root, cameras)) if cameras else {}
    for name, values in merged.items():
        stats[name] = {key: np.asarray(value).tolist() for key, value in values.items()}
    write_json(root / "meta/stats.json", stats)


def column_statistics(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """mean, std (population), min, max, q01, q10, q50, q90, q99 and count of each dimension.

    Args:
        values: ``[rows]`` or ``[rows, D]``, finite.

    Returns:
        Name -> D numbers (count: one).
    """
    table = values.reshape(len(values), -1).astype(np.float64)
    statistics = {
        "min": table.min(0),
        "max": table.max(0),
        "mean": table.mean(0),
        "std": table.std(0),
        **{name: np.quantile(table, q, axis=0) for name, q in QUANTILES.items()},
    }
    return {name: value.tolist() for name, value in statistics.items()} | {"count": [len(values)]}


def _episode_statistics(root: Path, features: list[str]) -> list[dict[str, dict[str, np.ndarray]]]:
    episodes = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        names = [n for n in pq.read_schema(path).names if n.startswith("stats/") and n.split("/")[1] in features]
        for row in _rows(path, names):
            episode: dict[str, dict[str, np.ndarray]] = {feature: {} for feature in features}
            for name, value in row.items():
                _, feature, statistic = name.split("/")
                episode[feature][statistic] = np.asarray(value)
            episodes.append(episode)
    return episodes


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns).to_pylist()


def _finished_episodes(root: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    episodes: list[dict[str, Any]] = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        try:
            names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            rows = _rows(path, names)
        except (pa.ArrowException, OSError):
            break
        for row in rows:
            if int(row["episode_index"]) != len(episodes) or not _files_whole(root, info, row):
                return episodes
            episodes.append(row)
    return episodes


def _files_whole(root: Path, info: dict[str, Any], row: dict[str, Any]) -> bool:
    data, videos = _files(info, row)
    try:
        pq.read_metadata(root / data)
        for video in videos:
            with av.open(str(root / video)) as container:
                container.streams.video[0]
    except (pa.ArrowException, FFmpegError, OSError, IndexError):
        return False
    return True


def _files(info: dict[str, Any], row: dict[str, Any]) -> tuple[str, list[str]]:
    data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    videos = [
        info["video_path"].format(
            video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
        )
        for key, feature in info["features"].items()
        if feature["dtype"] == "video"
    ]
    return data, videos


def _remove_leftovers(root: Path, info: dict[str, Any], episodes: list[dict[str, Any]]) -> None:
    wanted: set[Path] = set()
    for row in episodes:
        data, videos = _files(info, row)
        wanted |= {root / data, *(root / video for video in videos)}
        wanted.add(
            root
            / f"meta/episodes/chunk-{row['meta/episodes/chunk_index']:03d}"
            / f"file-{row['meta/episodes/file_index']:03d}.parquet"
        )
    for pattern in (
        "data/chunk-*/file-*.parquet",
        "meta/episodes/chunk-*/file-*.parquet",
        "videos/*/chunk-*/file-*.mp4",
    ):
        for path in set(root.glob(pattern)) - wanted:
            path.unlink()
    for folder in root.glob("tmp*"):  # the encoder's temporary files
        if folder.is_dir() and all(path.suffix == ".mp4" for path in folder.iterdir()):
            shutil.rmtree(folder)


def _restore_tasks(root: Path, info: dict[str, Any], episodes: list[dict[str, Any]]) -> int:
    """Makes tasks.parquet readable again from the episodes' own text; returns the number of tasks."""
    path = root / "meta/tasks.parquet"
    if not episodes:
        path.unlink(missing_ok=True)
        return 0
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        pass
    import pandas as pd

    tasks: dict[int, str] = {}
    for row in episodes:
        data, _ = _files(info, row)
        rows = _rows(root / data, ["episode_index", "task_index"])
        numbers = {entry["task_index"] for entry in rows if entry["episode_index"] == row["episode_index"]}
        if len(numbers) == 1 and len(row["tasks"]) == 1:
            tasks[numbers.pop()] = row["tasks"][0]
    names = [tasks.get(number, f"unknown task {number}") for number in range(max(tasks) + 1)]
    frame = pd.DataFrame({"task_index": range(len(names))}, index=pd.Index(names, name="task"))
    frame.to_parquet(path)
    return len(names)
