"""Videos of episodes, written by the worker that runs the episode."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from wamkit.envs.base import Environment


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Which episodes are filmed, and how."""

    trials: int = 2
    """The first so many trials of each arm and task."""
    arms: tuple[str, ...] | None = None
    """Only these arms; None for all."""
    failures_of: tuple[str, ...] = ()
    """Arms whose failed episodes are kept as well, whichever trial; the others of theirs are filmed for nothing."""
    every: int = 4
    """Steps between pictures."""
    resolution: int = 192
    camera: str | None = None
    """None for the environment's primary camera."""

    def kept(self, arm: str, trial_position: int) -> Literal["always", "if failed", "never"]:
        """Whether the video of the episode at this place in the list of trials is kept."""
        if trial_position < self.trials and (self.arms is None or arm in self.arms):
            return "always"
        return "if failed" if arm in self.failures_of else "never"


class EpisodeVideo:
    """Collects pictures of a running episode and writes them as H.264 in an mp4.

    Args:
        path: The file; appears whole or not at all.
        settings: How to film.
    """

    def __init__(self, path: Path, settings: VideoSettings) -> None:
        self._path, self._settings = path, settings
        self._pictures: list[np.ndarray] = []

    def look(self, env: Environment, step: int, last: bool) -> None:
        """Take a picture where one is due; the last state is always one."""
        if last or step % self._settings.every == 0:
            self._pictures.append(env.render_frame(self._settings.camera, self._settings.resolution))

    def save(self, rate_hz: float) -> None:
        """Write the file, in real time for a simulation of ``rate_hz`` steps a second."""
        write_video(self._path, self._pictures, rate_hz / self._settings.every)


def write_video(path: Path, pictures: Iterable[np.ndarray], rate_hz: float) -> None:
    """Pictures, uint8 [H, W, 3] of one size, as H.264 in an mp4 that appears whole or not at all.

    Args:
        path: The file; its folder is made.
        pictures: One after the other; each is encoded as it comes.
        rate_hz: How many a second.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.mp4")
    try:
        with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
            rate = Fraction(rate_hz).limit_denominator(1000)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
            stream.thread_count = 1
            height = width = 0
            for picture in pictures:
                if not height:
                    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                even = np.ascontiguousarray(picture[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
