"""DROID as json annotations beside mp4 files: states and actions at 15 Hz, video at 5 Hz.

Source: DROID (Khazatsky et al. 2024) in the layout of Ctrl-World: ``annotation/<split>/<id>.json`` and
``videos/<split>/<id>/<0|1|2>.mp4``. Video frame i belongs to row 3 i (the json's ``states`` are its rows 0, 3, 6, ...);
the last frame may stand for fewer than three rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

from wamkit.data.importers.base import (
    ImportFailure,
    ImportOptions,
    ImportSummary,
    Layout,
    Progress,
    Recording,
    Rows,
    even_size,
    numbered,
    read_source,
    refuse_options,
    write_recordings,
)
from wamkit.data.importers.rotations import continuous_angles, nearest_angles
from wamkit.data.video import iterate_frames, video_size

ROW_RATE_HZ = 15
ROWS_PER_FRAME = 3
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
"""The views 0, 1 and 2, under DROID's own names."""

_POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_JOINTS = tuple(f"joint_{index}" for index in range(1, 8))
_EXTRA = {
    "observation.state.joint_position": _JOINTS,
    "action.joint_position": _JOINTS,
    "action.joint_velocity": _JOINTS,
}


def understands(source: Path) -> bool:
    """Whether a folder has this layout."""
    annotation = next(iter(sorted(source.glob("annotation/*/*.json"))), None)
    return annotation is not None and "observation.state.cartesian_position" in annotation.read_text()


def import_droid(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports DROID episodes: 15 rows a second, each video frame repeated for its rows.

    State = measured end-effector pose (x, y, z, roll, pitch, yaw) and gripper; action = the commanded ones, absolute
    (``action.cartesian_position``, ``action.gripper_position``). Joint positions and velocities are kept as further
    columns. Angles are made continuous (see :mod:`wamkit.data.importers.rotations`). Failed episodes are kept with
    success False.

    Args:
        source: Folder with ``annotation/`` and ``videos/``.
        output_dir: Where the data set goes.
        options: Which episodes, named ``<split>/<id>``.
        progress: Called after each episode.

    Returns:
        What was imported.

    Raises:
        ImportFailure: If the source is damaged.
    """
    refuse_options("droid", options, fps="its rows come at 15 Hz", task="each episode has its own instruction")
    paths = {f"{path.parent.name}/{path.stem}": path for path in source.glob("annotation/*/*.json")}
    names = numbered(paths)
    if not names:
        raise ImportFailure(f"{source} has no annotation/<split>/<id>.json: check the path.")
    recordings = [
        Recording(name=name, load=lambda path=paths[name]: _load(source, path), missing=_missing(source, name))
        for name in names
    ]
    whole = next((recording.name for recording in recordings if not recording.missing), names[0])
    height, width = video_size(source / "videos" / whole / "0.mp4")
    layout = Layout(
        fps=ROW_RATE_HZ,
        cameras=dict.fromkeys(CAMERAS, even_size(height, width)),
        embodiment=options.embodiment or "droid",
        state_names=_POSE,
        action_names=_POSE,
        extra_features=_EXTRA,
        video_rate_hz=ROW_RATE_HZ / ROWS_PER_FRAME,
        record_success=True,
        notes=(
            "rows at 15 Hz; video at 5 Hz, each frame repeated for three rows",
            "action = commanded absolute pose and gripper",
            "roll, pitch, yaw are continuous within an episode (modulo 2 pi as recorded)",
        ),
    )
    return write_recordings("droid", source, output_dir, layout, recordings, options, progress=progress)


def _missing(source: Path, name: str) -> tuple[Path, ...]:
    files = (source / "videos" / name / f"{view}.mp4" for view in range(len(CAMERAS)))
    return tuple(path for path in files if not path.is_file())


def _load(source: Path, path: Path) -> Rows:
    annotation = read_source(path)
    length = int(annotation["raw_length"])
    videos = [source / entry["video_path"] for entry in annotation["videos"]]
    if len(videos) != len(CAMERAS):
        raise ImportFailure(f"{path} names {len(videos)} videos, DROID has {len(CAMERAS)}: restore the file.")
    frames = -(-length // ROWS_PER_FRAME)
    if int(annotation["video_length"]) != frames:
        raise ImportFailure(
            f"{path} has {length} rows and {annotation['video_length']} video frames; {frames} belong to them at one "
            f"frame for {ROWS_PER_FRAME} rows: restore the file."
        )
    angles = continuous_angles(_array(annotation, "observation.state.cartesian_position", path)[:, 3:])
    state = _pose(annotation, "observation.state", path)
    action = _pose(annotation, "action", path)
    state[:, 3:6] = angles
    action[:, 3:6] = nearest_angles(action[:, 3:6], angles)
    columns = {"observation.state": state, "action": action}
    columns |= {key: _array(annotation, key, path) for key in _EXTRA}
    texts = [text.strip() for text in annotation.get("texts", [])]
    return Rows(
        length=length,
        images=_images(videos, length),
        columns=columns,
        task=texts[0] if texts else "",
        success=bool(annotation["success"]),
    )


def _images(videos: list[Path], length: int) -> Iterator[Mapping[str, np.ndarray]]:
    streams: list[Iterator[tuple[float, av.VideoFrame]]] = [iterate_frames(path) for path in videos]
    images: dict[str, np.ndarray] = {}
    for row in range(length):
        if row % ROWS_PER_FRAME == 0:
            for camera, stream in zip(CAMERAS, streams, strict=True):
                found = next(stream, None)
                if found is None:
                    return  # the writer counts the rows
                images[camera] = found[1].to_ndarray(format="rgb24")
        yield images


def _pose(annotation: Mapping[str, Any], prefix: str, path: Path) -> np.ndarray:
    pose = _array(annotation, f"{prefix}.cartesian_position", path)
    gripper = _array(annotation, f"{prefix}.gripper_position", path)
    if len(gripper) != len(pose):
        raise ImportFailure(f"{path} has {len(pose)} poses and {len(gripper)} gripper positions: restore the file.")
    return np.concatenate([pose, gripper.reshape(-1, 1)], axis=1)


def _array(annotation: Mapping[str, Any], key: str, path: Path) -> np.ndarray:
    if key not in annotation:
        raise ImportFailure(f"{path} lacks {key!r}: restore the file.")
    return np.asarray(annotation[key], dtype=np.float64)
