"""BridgeData V2 and RT-1 as json annotations beside mp4 files, one camera.

Source: the layout of IRASim and video-prediction-policy: ``annotation/<split>/<id>.json`` (state [T, 7], action
[T - 1, 7], texts) and ``videos/<split>/<id>/rgb.mp4`` (T frames). Actions are derived from the states:
a[:3] = R_t^T (p_{t+1} - p_t), a[3:6] = euler_xyz(R_t^T R_{t+1}), a[6] = gripper_{t+1}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
from wamkit.data.importers.rotations import continuous_angles
from wamkit.data.video import iterate_frames, video_size

_POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class _Robot:
    embodiment: str
    rate_hz: int
    """From the data sets' papers: the files do not say, and the containers' 3 fps is wrong for Bridge."""
    camera: str
    marks: tuple[str, ...]
    """What the name of the source's folder contains."""


ROBOTS = {
    "bridge": _Robot("bridge", 5, "image_0", ("bridge", "widowx")),
    "rt1": _Robot("rt1", 3, "image", ("rt1", "rt-1", "fractal")),
}


def understands(source: Path) -> bool:
    """Whether a folder has this layout."""
    annotation = next(iter(sorted(source.glob("annotation/*/*.json"))), None)
    return annotation is not None and '"continuous_gripper_state"' in annotation.read_text()


def robot_of(source: Path) -> str:
    """Which of the two a folder holds, by its name: the files do not say.

    Raises:
        ImportFailure: If the name does not tell.
    """
    name = source.resolve().name.lower()
    for robot, facts in ROBOTS.items():
        if any(mark in name for mark in facts.marks):
            return robot
    raise ImportFailure(
        f"{source} is Bridge (5 Hz) or RT-1 (3 Hz), and its files do not tell which: say --format bridge or "
        "--format rt1."
    )


def import_bridge(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports BridgeData V2 episodes at 5 Hz; see :func:`import_rt1`."""
    return _import("bridge", source, output_dir, options, progress)


def import_rt1(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports RT-1 episodes at 3 Hz.

    A row is an observation and the action taken on it, so the last observation, which has no action, is left out.

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
    return _import("rt1", source, output_dir, options, progress)


def _import(
    name: str, source: Path, output_dir: Path, options: ImportOptions, progress: Progress | None
) -> ImportSummary:
    robot = ROBOTS[name]
    refuse_options(name, options, fps=f"its rate is {robot.rate_hz} Hz", task="each episode has its own instruction")
    paths = {f"{path.parent.name}/{path.stem}": path for path in source.glob("annotation/*/*.json")}
    names = numbered(paths)
    if not names:
        raise ImportFailure(f"{source} has no annotation/<split>/<id>.json: check the path.")
    videos = {episode: source / "videos" / episode / "rgb.mp4" for episode in names}
    recordings = [
        Recording(
            name=episode,
            load=lambda path=paths[episode]: _load(source, path, robot.camera),
            missing=() if videos[episode].is_file() else (videos[episode],),
        )
        for episode in names
    ]
    whole = next((recording.name for recording in recordings if not recording.missing), names[0])
    layout = Layout(
        fps=robot.rate_hz,
        cameras={robot.camera: even_size(*video_size(videos[whole]))},
        embodiment=options.embodiment or robot.embodiment,
        state_names=_POSE,
        action_names=_POSE,
        notes=(
            f"{robot.rate_hz} Hz, the robot's own rate, whatever the video files say",
            "the last observation of each episode has no action and is left out",
            "action = motion to the next state in the gripper's frame, and the next gripper state",
            "the state's roll, pitch, yaw are continuous within an episode (modulo 2 pi as recorded)",
        ),
    )
    return write_recordings(name, source, output_dir, layout, recordings, options, progress=progress)


def _load(source: Path, path: Path, camera: str) -> Rows:
    annotation = read_source(path)
    try:
        state = np.asarray(annotation["state"], dtype=np.float64)
        action = np.asarray(annotation["action"], dtype=np.float64)
        video = source / annotation["videos"][0]["video_path"]
    except (KeyError, IndexError) as error:
        raise ImportFailure(f"{path} lacks {error}: restore the file.") from error
    if state.ndim != 2 or action.ndim != 2 or len(action) != len(state) - 1:
        raise ImportFailure(
            f"{path} has {len(state)} states and {len(action)} actions, not one less: restore the file."
        )
    state[:, 3:6] = continuous_angles(state[:, 3:6])
    texts = [text.strip() for text in annotation.get("texts", [])]
    return Rows(
        length=len(action),
        images=_images(video, camera, len(state)),
        columns={"observation.state": state[:-1], "action": action},
        task=texts[0] if texts else "",
    )


def _images(video: Path, camera: str, states: int) -> Iterator[Mapping[str, np.ndarray]]:
    count = 0
    for count, (_, frame) in enumerate(iterate_frames(video), start=1):
        if count < states:
            yield {camera: frame.to_ndarray(format="rgb24")}
    if count != states:
        raise ImportFailure(f"{video} has {count} frames for {states} states: restore the file")
