"""Importers: other recordings into LeRobotDataset v3. One entry, :func:`import_recording`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wamkit.data.importers import bridge_rt1, droid, lerobot_v21, libero, rlds, video
from wamkit.data.importers.base import ImportFailure, ImportOptions, ImportSummary, Progress
from wamkit.errors import suggest

__all__ = ["FORMATS", "ImportFailure", "ImportOptions", "ImportSummary", "detect", "import_recording"]


class Format(NamedTuple):
    """One kind of recording."""

    description: str
    run: Callable[..., ImportSummary]


FORMATS: dict[str, Format] = {
    "droid": Format("DROID: annotation/<split>/<id>.json with 15 Hz columns, videos/", droid.import_droid),
    "bridge": Format(
        "BridgeData V2: annotation/<split>/<id>.json, videos/<split>/<id>/rgb.mp4", bridge_rt1.import_bridge
    ),
    "rt1": Format("RT-1: the same layout as bridge", bridge_rt1.import_rt1),
    "rlds": Format("RLDS: features.json beside *.tfrecord-* files", rlds.import_rlds),
    "lerobot_v21": Format("LeRobotDataset v2.0 or v2.1: meta/info.json", lerobot_v21.import_lerobot_v21),
    "libero": Format("LIBERO in LeRobot's format, pictures in parquet files: meta/info.json", libero.import_libero),
    "video": Format("bare video: files, or folders of files", video.import_video),
}


def detect(source: Path) -> str:
    """Which importer understands a folder.

    Args:
        source: The recording.

    Returns:
        A key of :data:`FORMATS`.

    Raises:
        ImportFailure: If none does; the message lists what is understood.
    """
    if not source.exists():
        raise ImportFailure(f"There is no recording at {source}: check the path.")
    if droid.understands(source):
        return "droid"
    if bridge_rt1.understands(source):
        return bridge_rt1.robot_of(source)
    if rlds.understands(source):
        return "rlds"
    info = source / "meta/info.json"
    if libero.understands(source):
        return "libero"
    if lerobot_v21.understands(source):
        return "lerobot_v21"
    if info.is_file() and '"v3.' in info.read_text():
        raise ImportFailure(f"{source} is a LeRobotDataset v3 already: use it as it is.")
    if video.understands(source):
        return "video"
    known = "; ".join(f"{name} ({format_.description})" for name, format_ in FORMATS.items())
    raise ImportFailure(f"{source} is no recording that is understood. Understood are: {known}.")


def import_recording(
    source: Path | str,
    output_dir: Path | str,
    *,
    format: str | None = None,
    episodes: Sequence[str] | None = None,
    limit: int | None = None,
    skip_broken: bool = False,
    resume: bool = False,
    fps: int | None = None,
    embodiment: str | None = None,
    task: str | None = None,
    progress: Progress | None = None,
) -> ImportSummary:
    """Imports a recording as LeRobotDataset v3.

    Args:
        source: Folder of the recording.
        output_dir: Where the data set goes; must not exist unless ``resume``.
        format: A key of :data:`FORMATS`; default: found out.
        episodes: Names of the episodes to import, as the summary and the errors write them; default all.
        limit: Import at most this many.
        skip_broken: Leave out episodes with missing or broken files, and list them.
        resume: Go on with an import that was interrupted.
        fps: Rows per second, where the source does not fix them.
        embodiment: Overrides the importer's choice.
        task: Instruction of every episode, where the source has none.
        progress: Called after each episode with (done, total or None, name).

    Returns:
        What was imported and what was left out.

    Raises:
        ImportFailure: If the recording is not understood or damaged; the message says what to do.
    """
    source = Path(source)
    name = detect(source) if format is None else format
    if name not in FORMATS:
        raise ImportFailure(f"Unknown format {name!r}.{suggest(name, FORMATS)}")
    options = ImportOptions(
        episodes=None if episodes is None else tuple(episodes),
        limit=limit,
        skip_broken=skip_broken,
        resume=resume,
        fps=fps,
        embodiment=embodiment,
        task=task,
    )
    return FORMATS[name].run(source, Path(output_dir), options, progress=progress)
