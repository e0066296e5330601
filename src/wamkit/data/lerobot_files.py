"""The files of a LeRobotDataset v3, read with pyarrow: info, episode table, and what to say where one is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.errors import WamkitError
from wamkit.json_files import read_json

CODEBASE_VERSION = "v3.0"
IMAGE_PREFIX = "observation.images."
SUCCESS_FEATURE = "next.success"
EXTRA_PATH = Path("meta/wamkit.json")
"""What LeRobot's info.json has no field for: its writer would drop unknown keys, and its reader warn about them."""


class DatasetError(WamkitError):
    """A data set that cannot be read as it is; the message names the episode or file and what to do."""


def dimension_names(key: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a vector feature's dimensions: as ``info.json`` gives them in one of several ways, else numbered."""
    names = feature.get("names")
    if isinstance(names, Mapping):  # {"motors": [...]}
        names = next(iter(names.values()), None)
    if isinstance(names, Sequence) and len(names) == 1 and not isinstance(names[0], str):
        names = names[0]  # [[...]], as some converters write
    size = int(np.prod(feature["shape"]))
    if not isinstance(names, Sequence) or len(names) != size:
        names = [f"{key.split('.')[-1]}_{index}" for index in range(size)]
    return tuple(str(name) for name in names)


def read_info(root: Path) -> dict[str, Any]:
    """``meta/info.json`` of a data set of the version that is read."""
    if not root.is_dir():
        raise DatasetError(f"There is no data set at {root}: check the path, or record or import one.")
    path = root / "meta/info.json"
    if not path.is_file():
        raise DatasetError(f"{root} is not a LeRobotDataset (no meta/info.json): convert it with `wam import {root}`.")
    info = read_meta(path)
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3."):
        raise DatasetError(
            f"{root} is a LeRobotDataset {version}; {CODEBASE_VERSION} is read: convert it with `wam import {root}`."
        )
    return info


def read_meta(path: Path) -> dict[str, Any]:
    """A JSON file of a data set."""
    return read_json(path, DatasetError, "restore the file; if a recording was interrupted, resume it.")


def read_extra(root: Path) -> dict[str, Any]:
    """What ``meta/wamkit.json`` says of a data set; empty where there is none, as in those of others."""
    path = root / EXTRA_PATH
    return read_json(path, DatasetError, "restore the file, or record or import again.") if path.is_file() else {}


def existing(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing: restore the file, or record or import again.")
    return path


def read_parquet(path: Path, columns: list[str] | None) -> pa.Table:
    """Some columns of a parquet file, or all."""
    try:
        with pq.ParquetFile(existing(path)) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): the file is truncated or damaged; restore it, or "
            "leave its episodes out."
        ) from error


def read_episode_table(root: Path) -> list[dict[str, Any]]:
    """Rows of ``meta/episodes`` without the statistics, in the order of the files."""
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        try:
            names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{path} cannot be read ({str(error).splitlines()[0]}): restore the file; if a recording was "
                "interrupted, resume it (resume=True), which keeps every finished episode."
            ) from error
        rows += read_parquet(path, names).to_pylist()
    return rows


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a video feature is a depth map."""
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
