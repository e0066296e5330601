"""Frames of a video file by presentation time, decoded with PyAV (its own FFmpeg: no system package).

Frames are found by the time that the container gives them, never by counting: files with a wrong nominal rate, with
dropped frames or with several episodes in one stream all decode right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from wamkit.errors import WamkitError

SEEK_GAP_S = 2.0
"""A wanted frame further ahead than this is reached by seeking, a nearer one by decoding on."""

_SMALL_FRAME_PIXELS = 256 * 256  # below this, threads cost a decoder more than they bring


class VideoError(WamkitError):
    """A video file that is missing, broken, or has no frame at a time that was asked for."""


def iterate_frames(path: Path, *, start_s: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decodes a file forward, in presentation order.

    Args:
        path: Video file.
        start_s: Begin at the key frame at or before this time.

    Yields:
        (seconds, frame): ``frame.to_ndarray(format="rgb24")`` gives uint8 ``[H, W, 3]``.

    Raises:
        VideoError: If the file is missing or cannot be decoded.
    """
    if not path.is_file():
        raise VideoError(f"The video {path} is missing: restore the file, or leave its episodes out.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} holds no video stream: restore the file, or leave its episodes out.")
            stream = container.streams.video[0]
            if stream.width * stream.height <= _SMALL_FRAME_PIXELS:
                stream.codec_context.thread_count = 1
            else:
                stream.thread_type = "AUTO"
            time_base = stream.time_base
            if time_base is None:
                raise VideoError(f"{path} has no time base: re-encode it, or leave its episodes out.")
            if start_s > 0.0:
                container.seek(max(0, int(start_s / time_base) - 1), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None:
                    yield float(frame.pts * time_base), frame
    except (FFmpegError, OSError) as error:
        reason = str(error).split("] ", 1)[-1].split(": '")[0]
        raise VideoError(
            f"The video {path} cannot be decoded ({reason}): restore the file, or leave its episodes out."
        ) from error


def frames_at(path: Path, times_s: np.ndarray, *, tolerance_s: float) -> Iterator[tuple[float, np.ndarray]]:
    """The frames nearest to given times: one pass forward, seeking over gaps longer than :data:`SEEK_GAP_S`.

    Args:
        path: Video file.
        times_s: Ascending presentation times in seconds; repeats are allowed.
        tolerance_s: Largest distance between a wanted time and its frame's time.

    Yields:
        (presentation time in seconds, uint8 ``[H, W, 3]``), one for each wanted time, in order. A repeated frame is
        the same array.

    Raises:
        VideoError: If the file is missing or broken, or a wanted time has no frame within the tolerance.
    """
    frames: Iterator[tuple[float, av.VideoFrame]] | None = None
    before: tuple[float, av.VideoFrame] | None = None
    after: tuple[float, av.VideoFrame] | None = None
    chosen: tuple[float, Any] | None = None
    picture = np.empty(0, np.uint8)
    for wanted in times_s.tolist():
        if frames is None or (after is not None and wanted - after[0] > SEEK_GAP_S):
            frames, before, after = iterate_frames(path, start_s=wanted), None, None
        while after is None or after[0] < wanted:
            following = next(frames, None)
            if following is None:
                break
            before, after = after, following
        candidates = [found for found in (before, after) if found is not None]
        if not candidates:
            raise VideoError(f"The video {path} has no frames: restore the file, or leave its episodes out.")
        nearest = min(candidates, key=lambda found: abs(found[0] - wanted))
        if abs(nearest[0] - wanted) > tolerance_s:
            raise VideoError(
                f"The video {path} has no frame at {wanted:.4f} s (the nearest is at {nearest[0]:.4f} s): "
                "it does not belong to these rows; restore the file, or leave the episode out."
            )
        if chosen is not nearest:
            chosen, picture = nearest, nearest[1].to_ndarray(format="rgb24")
        yield nearest[0], picture


def video_size(path: Path) -> tuple[int, int]:
    """(height, width) of a video file.

    Raises:
        VideoError: If the file is missing or cannot be decoded.
    """
    for _, frame in iterate_frames(path):
        return frame.height, frame.width
    raise VideoError(f"The video {path} has no frames: restore the file, or leave its episodes out.")
