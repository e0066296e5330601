"""Decode once: memory-mapped frames at the run's resolution, and features of frozen encoders beside them.

The name of a store's folder is a hash of everything that its content depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.data.draws import mix
from wamkit.data.frames import ResizeRule, nearest, new_frame_rows, resize_frames, size_of
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mapped_file import CacheError, described_key, open_or_fill
from wamkit.errors import suggest

Progress = Callable[..., None]
"""``progress(done, total, note="")``."""
Augment = Callable[[Tensor, int], Tensor]
"""``augment(uint8 [n, 3, H, W], seed)``: the same change for all frames; its ``repr`` says what it does."""

_FORMAT = 3
_CHUNK = 64  # frames resized or written at once


class FrameStore:
    """Decoded frames of one recording, by camera; make one with :meth:`build`."""

    def __init__(
        self,
        source: LeRobotSource,
        keys: Mapping[str, str],
        files: Mapping[str, np.ndarray],
        resolution: tuple[int, int],
        resize: ResizeRule,
        episodes: Sequence[int],
    ):
        self.source = source
        self.resolution = resolution
        self.resize: ResizeRule = resize
        self.keys = dict(keys)
        """Camera -> hash of what its frames depend on."""
        self.cameras = tuple(keys)
        self._files = dict(files)
        self.first, self.counts = _layout(source, episodes)
        """For each episode: its first stored frame (-1 where it was left out), and how many there are."""

    @classmethod
    def build(
        cls,
        source: LeRobotSource,
        directory: Path | str,
        cameras: Sequence[str] | None = None,
        resolution: int | Sequence[int] = 128,
        episodes: Sequence[int] | None = None,
        progress: Progress | None = None,
        *,
        resize: ResizeRule = "stretch",
    ) -> FrameStore:
        """Opens the store of a recording, decoding what is not there yet.

        Args:
            source: The recording.
            directory: Where stores are kept; several recordings may share it.
            cameras: Which; default all.
            resolution: One side, or (height, width).
            episodes: Which; default all.
            progress: Told frames done and to do.
            resize: See :func:`resize_frames`.

        Raises:
            CacheError: If there is no such camera, or the disk is full.
            DatasetError: If a video is missing or broken.
        """
        height, width = size_of(resolution)
        chosen = tuple(range(len(source.episodes))) if episodes is None else tuple(sorted({int(e) for e in episodes}))
        wanted = tuple(source.cameras) if cameras is None else tuple(cameras)
        for camera in wanted:
            if camera not in source.cameras:
                raise CacheError(f"{source.root} has no camera {camera!r}.{suggest(camera, source.cameras)}")
        fingerprint = source.fingerprint()
        total = int(_layout(source, chosen)[1].sum())
        keys, files = {}, {}
        for number, camera in enumerate(wanted):
            described = {
                "format": _FORMAT,
                "kind": "frames",
                "source": fingerprint,
                "camera": camera,
                "resolution": [height, width],
                "resize": resize,
                "episodes": "all" if episodes is None else list(chosen),
            }
            shape = (total, 3, height, width)
            keys[camera] = described_key(described)
            folder = Path(directory) / f"frames-{camera}-{height}x{width}-{keys[camera][:16]}"

            def fill(file: IO[bytes], camera: str = camera, number: int = number) -> None:
                done = number * total
                for episode in chosen:
                    for block in _decoded(source, camera, episode, (height, width), resize):
                        file.write(memoryview(block.numpy()).cast("B"))
                        done += len(block)
                        if progress is not None:
                            progress(done, total * len(wanted), f"decoding {camera}, episode {episode}")

            files[camera] = open_or_fill(folder, described, shape, np.dtype(np.uint8), fill)
        return cls(source, keys, files, (height, width), resize, chosen)

    def times(self, episode: int) -> np.ndarray:
        """Seconds from the episode's start at which its stored frames lie: float64 ``[n]``."""
        source = self.source
        return new_frame_rows(source.episodes[episode].length, source.fps, source.video_rate_hz) / source.fps

    def frames(self, camera: str, episode: int, times_s: np.ndarray | Sequence[float]) -> tuple[Tensor, np.ndarray]:
        """The stored frames nearest to given times.

        Args:
            camera: Of the recording.
            episode: Index.
            times_s: Seconds from the episode's start ``[n]``.

        Returns:
            (uint8 ``[n, 3, H, W]``, the times of these frames float64 ``[n]``).
        """
        position, times = self._nearest(episode, times_s)
        return torch.from_numpy(self.gather(camera, position)), times

    def gather(self, camera: str, positions: np.ndarray) -> np.ndarray:
        """Frames by their place in the store: uint8 ``[*positions.shape, 3, H, W]``."""
        return np.take(self._file(camera), positions, axis=0)

    def _nearest(self, episode: int, times_s: np.ndarray | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        if self.first[episode] < 0:
            raise CacheError(f"The frame store of {self.source.root} lacks episode {episode}: build it with it.")
        times = self.times(episode)
        place = nearest(times, np.asarray(times_s, np.float64))
        return self.first[episode] + place, times[place]

    def _file(self, camera: str) -> np.ndarray:
        if camera not in self._files:
            raise CacheError(f"The frame store has no camera {camera!r}.{suggest(camera, self.cameras)}")
        return self._files[camera]


class FeatureStore:
    """Features of a frozen encoder for every stored frame, in one or several views; make one with :meth:`build`.

    View 0 shows the frames as they are. Each other view shows every episode under one augmentation of its own,
    the same for all its frames.
    """

    def __init__(self, frame_store: FrameStore, keys: Mapping[str, str], files: Mapping[str, np.ndarray]):
        self.frame_store = frame_store
        self.keys = dict(keys)
        self.cameras = tuple(keys)
        self._files = dict(files)
        shapes = {file.shape for file in files.values()}
        self.views: int = next(iter(shapes))[0]
        self.tokens, self.width = next(iter(shapes))[2:]

    @classmethod
    def build(
        cls,
        frame_store: FrameStore,
        encode: Callable[[Tensor], Tensor],
        *,
        encoder_hash: str,
        preprocessing: str,
        directory: Path | str,
        cameras: Sequence[str] | None = None,
        views: int = 1,
        augment: Augment | None = None,
        dtype: Any = np.float16,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> FeatureStore:
        """Opens the feature store of a frame store, encoding what is not there yet.

        Args:
            frame_store: The frames.
            encode: uint8 ``[n, 3, H, W]`` on the CPU -> float ``[n, N, D]`` on any device.
            encoder_hash: Of the encoder's weights.
            preprocessing: What ``encode`` does to frames, in words; change it with the code.
            directory: Where stores are kept.
            cameras: Which; default all of the frame store.
            views: How many; more than one needs ``augment``.
            augment: See :data:`Augment`; :class:`wamkit.data.augment.Augmentation` is one.
            dtype: Of the file.
            batch_size: Frames encoded at once.
            progress: Told frames done and to do.

        Raises:
            CacheError: If the disk is full, or features come out in the wrong shape or not finite.
        """
        if views > 1 and augment is None:
            raise CacheError(f"{views} views were asked for without an augmentation: give augment, or views=1.")
        wanted = frame_store.cameras if cameras is None else tuple(cameras)
        episodes = np.flatnonzero(frame_store.first >= 0).tolist()
        total = int(frame_store.counts.sum())
        keys, files = {}, {}
        for number, camera in enumerate(wanted):
            frames = frame_store._file(camera)
            with torch.no_grad():
                sample = encode(torch.from_numpy(np.array(frames[:1])))
            if sample.ndim != 3 or len(sample) != 1:
                raise CacheError(
                    f"The encoder turned 1 frame into features of shape {tuple(sample.shape)}; return [n, N, D]."
                )
            described = {
                "format": _FORMAT,
                "kind": "features",
                "frames": frame_store.keys[camera],
                "encoder": encoder_hash,
                "preprocessing": preprocessing,
                "views": views,
                "augment": repr(augment) if views > 1 else "none",
            }
            shape = (views, total, *sample.shape[1:])
            keys[camera] = described_key(described | {"shape": list(shape), "dtype": np.dtype(dtype).name})
            folder = Path(directory) / f"features-{camera}-{keys[camera][:16]}"

            def fill(file: IO[bytes], camera: str = camera, number: int = number, frames: np.ndarray = frames) -> None:
                done = number * total * views
                for view in range(views):
                    for episode in episodes:
                        start, stop = (
                            frame_store.first[episode],
                            frame_store.first[episode] + frame_store.counts[episode],
                        )
                        for at in range(start, stop, batch_size):
                            pictures = torch.from_numpy(np.array(frames[at : min(at + batch_size, stop)]))
                            if view > 0 and augment is not None:
                                pictures = augment(pictures, int(mix(view, frame_store.cameras.index(camera), episode)))
                            with torch.no_grad():
                                features = encode(pictures).float().cpu().numpy()
                            with np.errstate(over="ignore"):  # told below
                                stored = features.astype(dtype)
                            if not np.isfinite(stored).all():
                                raise CacheError(
                                    f"The encoder's features of camera {camera!r}, episode {episode} are not finite "
                                    f"as {np.dtype(dtype).name}: mend the encoder, or store them as float32."
                                )
                            file.write(np.ascontiguousarray(stored).tobytes())
                            done += len(pictures)
                            if progress is not None:
                                progress(done, total * views * len(wanted), f"encoding {camera}, view {view}")

            files[camera] = open_or_fill(folder, described, shape, np.dtype(dtype), fill)
        return cls(frame_store, keys, files)

    def features(self, camera: str, episode: int, times_s: np.ndarray | Sequence[float], view: int = 0) -> Tensor:
        """Features of the frames nearest to given times: ``[n, N, D]``."""
        position, _ = self.frame_store._nearest(episode, times_s)
        return torch.from_numpy(self.gather(camera, np.full(1, view), position[None])[0])

    def gather(self, camera: str, views: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Features by place: views ``[n]`` and positions ``[n, T]`` to ``[n, T, N, D]``."""
        if camera not in self._files:
            raise CacheError(f"The feature store has no camera {camera!r}.{suggest(camera, self.cameras)}")
        file = self._files[camera]
        flat = file.reshape(-1, *file.shape[2:])
        return np.take(flat, views[:, None] * file.shape[1] + positions, axis=0)


def _layout(source: LeRobotSource, episodes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(first stored frame, number of frames) for each episode of the recording."""
    first = np.full(len(source.episodes), -1, np.int64)
    counts = np.zeros(len(source.episodes), np.int64)
    place = 0
    for episode in episodes:
        if not 0 <= episode < len(source.episodes):
            raise CacheError(f"{source.root} has episodes 0 to {len(source.episodes) - 1}, not {episode}.")
        count = len(new_frame_rows(source.episodes[episode].length, source.fps, source.video_rate_hz))
        first[episode], counts[episode] = place, count
        place += count
    return first, counts


def _decoded(
    source: LeRobotSource, camera: str, episode: int, resolution: tuple[int, int], rule: ResizeRule
) -> Iterator[Tensor]:
    """An episode's new frames in blocks: uint8 ``[n, 3, H, W]``."""
    rows = new_frame_rows(source.episodes[episode].length, source.fps, source.video_rate_hz)
    pictures: list[np.ndarray] = []
    for _, picture in source.iterate(camera, episode, rows / source.fps):
        pictures.append(picture)
        if len(pictures) == _CHUNK:
            yield resize_frames(np.stack(pictures), resolution, rule)
            pictures = []
    if pictures:
        yield resize_frames(np.stack(pictures), resolution, rule)
