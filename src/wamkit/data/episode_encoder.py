"""Encode an episode's frames as they come, in the recording process.

Stands where LeRobot's ``StreamingVideoEncoder`` stands in its ``DatasetWriter`` and has its interface. The reference
hands frames to a thread through a queue and drops one when the queue is full, which shifts every later frame against
its row; here ``feed_frame`` returns when the frame is encoded. At 128 px that takes half a millisecond.
"""

from __future__ import annotations

import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream
    from lerobot.configs import VideoEncoderConfig

_STATISTICS_PIXELS = 16  # image statistics come from a grid of about this many pixels a side, of every frame
_SMALL_FRAME_PIXELS = 256 * 256  # below this, threads cost the encoder more than they bring
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)


class _CameraFile:
    """One camera's file of one episode."""

    def __init__(self, path: Path, fps: int, config: VideoEncoderConfig):
        self.path = path
        self._fps = fps
        self._config = config
        self._samples: list[np.ndarray] = []
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None

    def add(self, image: np.ndarray) -> None:
        if self._container is None or self._stream is None:
            self._container, self._stream = self._open(image)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = len(self._samples), Fraction(1, self._fps)
        self._container.mux(self._stream.encode(frame))
        step = max(1, min(image.shape[:2]) // _STATISTICS_PIXELS)
        self._samples.append(image[::step, ::step].copy())

    def _open(self, image: np.ndarray) -> tuple[OutputContainer, VideoStream]:
        container = av.open(str(self.path), "w")
        threads = 1 if image.shape[0] * image.shape[1] <= _SMALL_FRAME_PIXELS else None
        options = self._config.get_codec_options(threads, as_strings=True)
        stream = container.add_stream(self._config.vcodec, self._fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = self._config.pix_fmt
        stream.time_base = Fraction(1, self._fps)
        return container, stream

    def close(self) -> None:
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None

    def abort(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def statistics(self) -> dict[str, np.ndarray]:
        """Per channel, in 0..255, under LeRobot's names; ``count`` is the number of frames."""
        pixels = np.stack(self._samples).reshape(-1, 3).astype(np.float64)
        return {
            "min": pixels.min(0),
            "max": pixels.max(0),
            "mean": pixels.mean(0),
            "std": pixels.std(0),
            "count": np.array([len(self._samples)]),
            **{f"q{round(100 * q):02d}": np.quantile(pixels, q, axis=0) for q in _QUANTILES},
        }


class EpisodeEncoder:
    """Encodes every camera of the running episode; the interface is LeRobot's ``StreamingVideoEncoder``.

    Args:
        fps: Rows per second; frame i gets the presentation time i / fps.
        config: Codec, quality and key-frame distance, as LeRobot's ``RGBEncoderConfig``.
    """

    def __init__(self, fps: int, config: VideoEncoderConfig):
        self._fps = fps
        self._config = config
        self._files: dict[str, _CameraFile] = {}

    def start_episode(self, video_keys: list[str], temp_dir: Path, depth_video_keys: list[str] | None = None) -> None:
        """Opens one temporary file for each camera, in a folder of its own under ``temp_dir``."""
        if depth_video_keys:
            raise ValueError(f"depth cameras are not recorded: {depth_video_keys}")
        self.cancel_episode()
        for key in video_keys:
            self._files[key] = _CameraFile(Path(tempfile.mkdtemp(dir=temp_dir)) / f"{key}.mp4", self._fps, self._config)

    def feed_frame(self, video_key: str, image: np.ndarray) -> None:
        """Encodes the next frame of a camera, uint8 ``[H, W, 3]``."""
        self._files[video_key].add(image)

    def finish_episode(self) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
        """Closes the files.

        Returns:
            Feature key -> (path of the finished file, its pixel statistics).
        """
        for file in self._files.values():
            file.close()
        results = {key: (file.path, file.statistics()) for key, file in self._files.items()}
        self._files = {}
        return results

    def cancel_episode(self) -> None:
        """Throws the running episode away."""
        for file in self._files.values():
            file.abort()
            shutil.rmtree(file.path.parent, ignore_errors=True)
        self._files = {}

    def close(self) -> None:
        """Throws an unfinished episode away."""
        self.cancel_episode()
