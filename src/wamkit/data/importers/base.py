"""What every importer shares: a recording's layout, its episodes, and the writing of them as LeRobotDataset v3."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.lerobot_files import DatasetError, read_extra
from wamkit.data.recorder import LeRobotRecorder
from wamkit.data.video import VideoError
from wamkit.errors import WamkitError, suggest
from wamkit.json_files import read_json, read_json_lines

Progress = Callable[[int, "int | None", str], None]
"""Called after each episode with (done, total or None, name)."""


_SHOWN_REASONS = 5


class ImportFailure(WamkitError):
    """A recording that cannot be imported as it is; the message names the file or episode and what to do."""


@dataclass(frozen=True)
class Layout:
    """What all episodes of a recording have in common; the arguments of the recorder."""

    fps: int
    """Rows per second: the rate of states and actions, not of the video."""
    cameras: Mapping[str, tuple[int, int]]
    embodiment: str
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    extra_features: Mapping[str, Sequence[str] | Mapping[str, Any]] = field(default_factory=dict)
    video_rate_hz: float | None = None
    record_success: bool = False
    notes: tuple[str, ...] = ()
    """What the reader of the summary should know about how the source was understood."""


@dataclass(frozen=True)
class Rows:
    """One episode, ready to be written."""

    length: int
    images: Iterator[Mapping[str, np.ndarray]]
    """Camera -> uint8 ``[H, W, 3]``, row by row."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Feature -> ``[length, ...]``."""
    task: str = ""
    success: bool = False
    absent_cameras: tuple[str, ...] = ()
    """Cameras that this episode lacks although the others have them: their frames are black."""


@dataclass(frozen=True)
class Recording:
    """One episode of the source, not read yet."""

    name: str
    load: Callable[[], Rows]
    missing: tuple[Path, ...] = ()
    """Files that it needs and that are absent."""


@dataclass(frozen=True)
class ImportOptions:
    """What the user may choose; a format refuses what it has no use for."""

    episodes: tuple[str, ...] | None = None
    """Names of the episodes to import; default all."""
    limit: int | None = None
    """Import at most this many."""
    skip_broken: bool = False
    """Leave episodes with missing or broken files out, and list them, instead of stopping at the first."""
    resume: bool = False
    """Go on with an import that was interrupted."""
    fps: int | None = None
    """Rows per second, where the source does not say."""
    embodiment: str | None = None
    task: str | None = None
    """Instruction of every episode, where the source has none."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    format: str
    source: Path
    output_dir: Path
    episodes: int
    """Episodes now in the data set."""
    frames: int
    """Rows now in the data set."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(episode, reason)."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.format}: {self.episodes} episodes, {self.frames} rows in {self.output_dir} ({self.seconds:.1f} s)"
        ]
        lines += [f"  note: {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"  skipped {len(self.skipped)} episodes: {compressed(name for name, _ in self.skipped)}")
            lines += [f"    {name}: {reason}" for name, reason in self.skipped[:_SHOWN_REASONS]]
        return "\n".join(lines)


def write_recordings(
    format_name: str,
    source: Path,
    output_dir: Path,
    layout: Layout,
    recordings: Iterable[Recording],
    options: ImportOptions,
    *,
    progress: Progress | None = None,
) -> ImportSummary:
    """Writes a recording's episodes as one LeRobotDataset v3.

    Args:
        format_name: Which importer.
        source: Where it comes from; its folder's name is kept in the data set.
        output_dir: Where the data set goes.
        layout: What the episodes have in common.
        recordings: The episodes, in a fixed order.
        options: The user's choices.
        progress: Called after each episode.

    Returns:
        What was done.

    Raises:
        ImportFailure: If files are missing, an episode is broken (unless ``skip_broken``) or none is left. Episodes
            imported until then stay; ``resume`` goes on behind them.
    """
    started = time.perf_counter()
    selected, skipped = _select(source, recordings, options)
    total = len(selected) if isinstance(selected, Sequence) else None
    total = options.limit if total is None else min(total, options.limit or total)
    with LeRobotRecorder(
        output_dir,
        layout.fps,
        layout.cameras,
        layout.state_names,
        layout.action_names,
        layout.embodiment,
        extra_features=layout.extra_features,
        resume=options.resume,
        record_success=layout.record_success,
        video_rate_hz=layout.video_rate_hz,
        metadata={"source": source.name, "format": format_name, "source_episodes": [], "absent_cameras": {}},
    ) as recorder:
        extra = read_extra(recorder.root)
        names = extra.get("source_episodes", [])[: recorder.episodes]
        absent = extra.get("absent_cameras", {})
        finished = set(names)
        for recording in selected:
            if options.limit is not None and recorder.episodes >= options.limit:
                break
            if recording.name in finished:
                continue
            try:
                rows = recording.load()
                _write_rows(recorder, rows, layout)
            except (DatasetError, VideoError, ImportFailure, OSError) as error:
                recorder.discard_episode()
                if not options.skip_broken:
                    raise ImportFailure(
                        f"Episode {recording.name} of {source} is broken: {str(error).rstrip('.')}. --skip_broken "
                        f"leaves it out; {recorder.episodes} episodes are in {output_dir}; --resume goes on from there."
                    ) from error
                skipped.append((recording.name, str(error)))
                continue
            names.append(recording.name)
            if rows.absent_cameras:
                absent[str(recorder.episodes)] = list(rows.absent_cameras)
            recorder.set_metadata(source_episodes=names, absent_cameras=absent)
            recorder.save_episode(success=rows.success)
            if progress is not None:
                progress(recorder.episodes, total, recording.name)
        episodes, frames = recorder.episodes, recorder.rows
    if episodes == 0:
        shutil.rmtree(output_dir)
        raise ImportFailure(f"No episode of {source} could be imported: {skipped[0][1] if skipped else 'it is empty'}.")
    return ImportSummary(
        format=format_name,
        source=source,
        output_dir=output_dir,
        episodes=episodes,
        frames=frames,
        skipped=tuple(skipped),
        notes=layout.notes,
        seconds=time.perf_counter() - started,
    )


def read_source(path: Path) -> dict[str, Any]:
    """A JSON file of a source.

    Raises:
        ImportFailure: If it is missing or damaged.
    """
    return read_json(path, ImportFailure, "restore the file.")


def read_source_lines(path: Path) -> list[dict[str, Any]]:
    """A source's file of one JSON object a line.

    Raises:
        ImportFailure: If it is missing or damaged.
    """
    return read_json_lines(path, ImportFailure, "restore the file.")


def even_crop(image: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` without its last row or column where their number is odd, as H.264 needs it."""
    return image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]


def even_size(height: int, width: int) -> tuple[int, int]:
    """The size of a frame after :func:`even_crop`."""
    return height // 2 * 2, width // 2 * 2


def numbered(names: Iterable[str]) -> list[str]:
    """Names in the order of a person: by folder, then by number where the name is one (2 before 10)."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("/")]

    return sorted(names, key=key)


def compressed(names: Iterable[str]) -> str:
    """A list of names in a short form: numbers in a row become ``3-7``."""
    parts: list[list[str]] = []
    for name in names:
        if parts and name.isdigit() and parts[-1][-1].isdigit() and int(name) == int(parts[-1][-1]) + 1:
            parts[-1].append(name)
        else:
            parts.append([name])
    return ", ".join(part[0] if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def refuse_options(format_name: str, options: ImportOptions, **reasons: str) -> None:
    """Raises where the user chose something that the source itself fixes.

    Args:
        format_name: Which importer.
        options: The user's choices.
        **reasons: Option name -> why it cannot be chosen.
    """
    for name, reason in reasons.items():
        if getattr(options, name) is not None:
            raise ImportFailure(f"--{name} has no meaning for {format_name}: {reason}. Leave it out.")


def _write_rows(recorder: LeRobotRecorder, rows: Rows, layout: Layout) -> None:
    for key, values in rows.columns.items():
        if len(values) != rows.length:
            raise ImportFailure(f"{key!r} has {len(values)} entries for {rows.length} rows: restore the recording")
    count = 0
    for row, images in enumerate(rows.images):
        values = {key: column[row] for key, column in rows.columns.items()}
        recorder.add_frame(
            {camera: even_crop(image) for camera, image in images.items()},
            values.pop("observation.state", None),
            values.pop("action", None),
            rows.task,
            **values,
        )
        count += 1
    if count != rows.length:
        raise ImportFailure(f"its video ends after {count} of {rows.length} rows: restore the recording")


def _select(
    source: Path, recordings: Iterable[Recording], options: ImportOptions
) -> tuple[Iterable[Recording], list[tuple[str, str]]]:
    """The episodes to import, and those left out because files are missing (with the reason)."""
    if options.episodes is not None:
        found = {recording.name: recording for recording in recordings}
        for name in options.episodes:
            if name not in found:
                raise ImportFailure(f"The recording has no episode {name!r}.{suggest(name, found)}")
        recordings = [found[name] for name in options.episodes]
    if not isinstance(recordings, Sequence):
        return recordings, []
    wanted = recordings if options.skip_broken else recordings[: options.limit]
    broken = [recording for recording in wanted if recording.missing]
    if broken and not options.skip_broken:
        raise ImportFailure(
            f"{len(broken)} of {len(wanted)} episodes of {source} lack files: {compressed(r.name for r in broken)} "
            f"(first {broken[0].missing[0].relative_to(source)}); restore them, or import the rest with --skip_broken."
        )
    skipped = [(r.name, f"{r.missing[0].relative_to(source)} is missing") for r in broken]
    return [recording for recording in recordings if not recording.missing], skipped
