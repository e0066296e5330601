"""Video files without states or actions: the material of latent actions.

A folder of videos is either one episode seen by several synchronised cameras, or one episode each; a folder of folders
is one episode for each folder, its files the cameras.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

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
    write_recordings,
)
from wamkit.data.video import VideoError, frames_at, iterate_frames

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
_VIEW_WORDS = re.compile(r"cam|view|image|rgb|wrist|exterior|ego|head|left|right|top|front|side", re.IGNORECASE)


def understands(source: Path) -> bool:
    """Whether a folder, or its folders, hold video files."""
    return bool(_videos(source)) or any(_videos(path) for path in _folders(source))


def import_video(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports bare video as an action-free data set; times come from the files.

    Files side by side are the views of one episode where there are two to eight of them, of equal length, whose names
    speak of cameras (``wrist_image_left``); otherwise each is an episode with the camera ``video``. The summary says
    which it was; a folder of folders leaves no doubt.

    Args:
        source: Folder, or one file.
        output_dir: Where the data set goes.
        options: ``fps`` resamples (default: the files' rate, rounded); ``embodiment`` (default ``human``, which models
            treat as a body without states and actions); ``task`` an instruction for all.
        progress: Called after each episode.

    Returns:
        What was imported.

    Raises:
        ImportFailure: If there is no video, or a file is broken.
    """
    episodes, note = _episodes(source)
    names = numbered(episodes)
    probed = {path: _probe(path) for path in next(iter(episodes[name] for name in names)).values()}
    rates = {rate for rate, _, _ in probed.values()}
    fps = options.fps or max(1, round(max(rates)))
    cameras = {camera: even_size(*probed[path][2]) for camera, path in episodes[names[0]].items()}
    recordings = [
        Recording(name=name, load=lambda views=episodes[name]: _load(views, fps, tuple(cameras), options.task or ""))
        for name in names
    ]
    layout = Layout(
        fps=fps,
        cameras=cameras,
        embodiment=options.embodiment or "human",
        video_rate_hz=min(float(fps), min(rates)),
        notes=(note, f"{fps} Hz from files at {', '.join(f'{rate:.4g}' for rate in sorted(rates))} Hz"),
    )
    return write_recordings("video", source, output_dir, layout, recordings, options, progress=progress)


def _videos(folder: Path) -> list[Path]:
    if folder.is_file() and folder.suffix.lower() in SUFFIXES:
        return [folder]
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir()) if source.is_dir() else []


def _episodes(source: Path) -> tuple[dict[str, dict[str, Path]], str]:
    """Episode -> camera -> file, and what was understood."""
    files = _videos(source)
    if not files:
        found = {folder.name: {path.stem: path for path in _videos(folder)} for folder in _folders(source)}
        found = {name: views for name, views in found.items() if views}
        if not found:
            raise ImportFailure(f"{source} holds no video files ({', '.join(sorted(SUFFIXES))}): check the path.")
        return found, f"each of the {len(found)} folders is an episode, its files are the cameras"
    if 2 <= len(files) <= 8 and all(_VIEW_WORDS.search(path.stem) for path in files):
        probed = [_probe(path) for path in files]
        durations = [duration for _, duration, _ in probed]
        if max(durations) - min(durations) <= 1.0 / min(rate for rate, _, _ in probed):
            views = {path.stem: path for path in files}
            return {source.resolve().name: views}, f"the {len(files)} files are synchronised views of one episode"
    return {path.stem: {"video": path} for path in files}, f"each of the {len(files)} files is an episode"


def _probe(path: Path) -> tuple[float, float, tuple[int, int]]:
    """(frames per second, seconds from the first to the last frame, (height, width))."""
    first = next(iterate_frames(path), None)
    if first is None:
        raise VideoError(f"The video {path} has no frames: restore the file, or leave it out.")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        span = float((max(times) - min(times)) * (stream.time_base or 0))
    rate = (len(times) - 1) / span if span > 0 else float(stream.average_rate or 1)
    return rate, span, (first[1].height, first[1].width)


def _load(views: Mapping[str, Path], fps: int, cameras: tuple[str, ...], task: str) -> Rows:
    if tuple(views) != cameras:
        raise ImportFailure(
            f"it has the views {sorted(views)}, the first episode {sorted(cameras)}: rename or add them"
        )
    spans = [_probe(path) for path in views.values()]
    length = round(min(span for _, span, _ in spans) * fps) + 1
    return Rows(length=length, images=_images(views, spans, length, fps), task=task)


def _images(
    views: Mapping[str, Path], probed: list[tuple[float, float, tuple[int, int]]], length: int, fps: int
) -> Iterator[Mapping[str, np.ndarray]]:
    streams = {}
    for (camera, path), (rate, _, _) in zip(views.items(), probed, strict=True):
        start = next(time for time, _ in iterate_frames(path))
        # Variable rates drift from their mean: a frame may lie further from its row than half a row.
        streams[camera] = frames_at(path, start + np.arange(length) / fps, tolerance_s=1.5 / min(rate, fps))
    for _ in range(length):
        yield {camera: next(stream)[1] for camera, stream in streams.items()}
