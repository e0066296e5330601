"""Published LIBERO data sets in LeRobot's format, v2 or v3, whose pictures lie in parquet files.

Published ones differ in names (``image2`` or ``wrist_image``, with or without ``observation.``), name no dimensions,
and some say 10 Hz although their rows are LIBERO's actions, one each 50 ms. Here they get the names and the rate of
LIBERO in LeRobot, and video. Numbers stay as they are; the summary says which gripper range was found.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wamkit.data.embodiments import LIBERO_ACTION, LIBERO_STATE
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

RATE_HZ = 20
_CAMERAS = {"image": ("observation.images.image", "image"), "image2": ("observation.images.image2",)}
_CAMERAS["image2"] += ("observation.images.wrist_image", "wrist_image")
_STATE, _ACTION = ("observation.state", "state"), ("action", "actions")


def understands(source: Path) -> bool:
    """Whether a folder is such a data set: pictures in parquet under known names, 8 numbers of state, 7 of action."""
    info = source / "meta/info.json"
    if not info.is_file():
        return False
    features = read_source(info).get("features", {})
    sizes = [tuple(features.get(_found(features, names) or "", {}).get("shape", ())) for names in (_STATE, _ACTION)]
    return sizes == [(8,), (7,)] and bool(_pictures(features))


def import_libero(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports a LIBERO data set under LeRobot's names for LIBERO.

    Args:
        source: Folder with ``meta/info.json``.
        output_dir: Where the data set goes.
        options: Which episodes, by number; ``fps`` where the rows are not LIBERO's 20 a second.
        progress: Called after each episode.

    Returns:
        What was imported.

    Raises:
        ImportFailure: If files are missing or damaged.
    """
    refuse_options("libero", options, task="each episode has its own instruction")
    info = read_source(source / "meta/info.json")
    features: dict[str, Any] = info["features"]
    keys = _pictures(features)
    state, action = _found(features, _STATE), _found(features, _ACTION)
    files = sorted(source.glob("data/*/*.parquet"))
    if not files or state is None or action is None:
        raise ImportFailure(f"{source} holds no parquet files under data/: restore it.")
    places = [(int(number), file) for file in files for number in np.unique(_column(file, "episode_index"))]
    low, high = _gripper(files[0], action)
    said = f"the source says {info['fps']} Hz; " if info["fps"] != (options.fps or RATE_HZ) else ""
    layout = Layout(
        fps=options.fps or RATE_HZ,
        cameras={camera: even_size(*features[key]["shape"][:2]) for camera, key in keys.items()},
        embodiment=options.embodiment or "libero",
        state_names=LIBERO_STATE,
        action_names=LIBERO_ACTION,
        notes=(f"{said}rows are taken as {options.fps or RATE_HZ} Hz; gripper commands lie in [{low:g}, {high:g}]",),
    )
    tasks = _tasks(source)
    load = partial(_load, keys=keys, state=state, action=action, tasks=tasks)
    recordings = [
        Recording(name=str(number), load=partial(load, file=file, episode=number)) for number, file in sorted(places)
    ]
    return write_recordings("libero", source, output_dir, layout, recordings, options, progress=progress)


def _found(features: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in features), None)


def _pictures(features: Mapping[str, Any]) -> dict[str, str]:
    """Camera -> the feature that holds its pictures."""
    found = {camera: _found(features, names) for camera, names in _CAMERAS.items()}
    return {camera: key for camera, key in found.items() if key and features[key]["dtype"] == "image"}


def _column(file: Path, name: str) -> np.ndarray:
    return np.asarray(_read(file, [name]).column(name).to_pylist())


def _read(file: Path, columns: list[str], episode: int | None = None) -> pa.Table:
    filters = None if episode is None else [("episode_index", "=", episode)]
    try:
        return pq.read_table(file, columns=columns, filters=filters)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ImportFailure(f"{file} cannot be read ({reason}): it is truncated or damaged; restore it") from error


def _gripper(file: Path, action: str) -> tuple[float, float]:
    commands = _column(file, action)[:, -1]
    return float(commands.min()), float(commands.max())


def _tasks(source: Path) -> dict[int, str]:
    """Number of a task -> its instruction."""
    table = source / "meta/tasks.parquet"
    if table.is_file():  # v3: the instruction is the table's index
        rows = pq.read_table(table).to_pylist()
        return {int(row["task_index"]): str(row.get("task") or row.get("__index_level_0__")) for row in rows}
    rows = read_source_lines(source / "meta/tasks.jsonl")
    return {int(row["task_index"]): str(row["task"]) for row in rows}


def _load(
    *, file: Path, episode: int, keys: Mapping[str, str], state: str, action: str, tasks: Mapping[int, str]
) -> Rows:
    table = _read(file, [*keys.values(), state, action, "task_index"], episode)
    task = int(table.column("task_index")[0].as_py())
    if task not in tasks:
        raise ImportFailure(f"Episode {episode} has task {task}, which meta/tasks does not name: restore it")
    return Rows(
        length=table.num_rows,
        images=_images(table, keys),
        columns={
            "observation.state": np.asarray(table.column(state).to_pylist(), np.float32),
            "action": np.asarray(table.column(action).to_pylist(), np.float32),
        },
        task=tasks[task],
    )


def _images(table: pa.Table, keys: Mapping[str, str]) -> Iterator[Mapping[str, np.ndarray]]:
    for row in range(table.num_rows):
        stored = {camera: table.column(key)[row].as_py()["bytes"] for camera, key in keys.items()}
        yield {camera: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for camera, data in stored.items()}
