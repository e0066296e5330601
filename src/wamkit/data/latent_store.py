"""Latents of every training window's clip, encoded once: what `FeatureStore` is to single frames.

A video VAE sees a clip, not a frame, so the store holds an entry for each frame as a window's present: the latents of
the frames at the window's offsets from it, chosen by the same rule as the windows choose theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.data.cache import FrameStore, Progress
from wamkit.data.frames import nearest, new_frame_rows
from wamkit.data.mapped_file import CacheError, described_key, open_or_fill
from wamkit.errors import suggest

_FORMAT = 1


class LatentStore:
    """Latents [F, N, C] of the clip that begins at each stored frame; make one with :meth:`build`.

    Stands where a `FeatureStore` stands in a mixture. All cameras share one grid of latents, which windows carry
    under the first camera's name.
    """

    views = 1

    def __init__(
        self, frame_store: FrameStore, cameras: Sequence[str], file: np.ndarray, key: str, offsets_s: Sequence[float]
    ) -> None:
        self.frame_store, self.key = frame_store, key
        self.cameras = tuple(cameras)
        """The recording's names, in the canvas's order."""
        self.offsets_s = tuple(offsets_s)
        self._file = file

    @classmethod
    def build(
        cls,
        frame_store: FrameStore,
        encode: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        encoder_hash: str,
        preprocessing: str,
        offsets_s: Sequence[float],
        directory: Path | str,
        cameras: Mapping[str, str],
        dtype: Any = np.float16,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> LatentStore:
        """Opens the latent store of a frame store, encoding what is not there yet.

        Args:
            frame_store: The frames.
            encode: Clips by the encoder's name of each camera, uint8 ``[n, T, 3, H, W]`` on the CPU -> float
                ``[n, F, N, C]`` on any device.
            encoder_hash: Of the encoder's weights.
            preprocessing: What ``encode`` does to frames, in words; change it with the code.
            offsets_s: Seconds from the present of a clip's frames; the first is 0.
            directory: Where stores are kept.
            cameras: The encoder's name of each camera -> the recording's.
            dtype: Of the file.
            batch_size: Clips encoded at once.
            progress: Told clips done and to do.

        Raises:
            CacheError: A camera is missing, the disk is full, or latents come out in the wrong shape or not finite.
        """
        for own in cameras.values():
            if own not in frame_store.cameras:
                raise CacheError(f"The frame store has no camera {own!r}.{suggest(own, frame_store.cameras)}")
        total = int(frame_store.counts.sum())
        episodes = np.flatnonzero(frame_store.first >= 0).tolist()

        def clips(places: np.ndarray) -> dict[str, Tensor]:
            return {name: torch.from_numpy(frame_store.gather(own, places)) for name, own in cameras.items()}

        with torch.no_grad():
            first = episodes[0] if episodes else None
            places = (
                np.zeros((1, len(offsets_s)), np.int64)
                if first is None
                else clip_places(frame_store, first, offsets_s)[:1]
            )
            sample = encode(clips(places))
        if sample.ndim != 4 or len(sample) != 1:
            raise CacheError(
                f"The encoder turned 1 clip into latents of shape {tuple(sample.shape)}; return [n, F, N, C]."
            )
        shape = (total, *sample.shape[1:])
        described = {
            "format": _FORMAT,
            "kind": "latents",
            "frames": {name: frame_store.keys[own] for name, own in cameras.items()},
            "encoder": encoder_hash,
            "preprocessing": preprocessing,
            "offsets_s": [float(offset) for offset in offsets_s],
        }
        key = described_key(described | {"shape": list(shape), "dtype": np.dtype(dtype).name})

        def fill(file: IO[bytes]) -> None:
            done = 0
            for episode in episodes:
                places = clip_places(frame_store, episode, offsets_s)
                for at in range(0, len(places), batch_size):
                    with torch.no_grad():
                        latents = encode(clips(places[at : at + batch_size])).float().cpu().numpy()
                    with np.errstate(over="ignore"):  # told below
                        stored = latents.astype(dtype)
                    if not np.isfinite(stored).all():
                        raise CacheError(
                            f"The latents of episode {episode} are not finite as {np.dtype(dtype).name}: train the VAE"
                            " further, or store them as float32."
                        )
                    file.write(np.ascontiguousarray(stored).tobytes())
                    done += len(stored)
                    if progress is not None:
                        progress(done, total, "encoding clips")

        file = open_or_fill(Path(directory) / f"latents-{key[:16]}", described, shape, np.dtype(dtype), fill)
        return cls(frame_store, tuple(cameras.values()), file, key, offsets_s)

    def check(self, offsets_s: np.ndarray, jitter_s: float, starts: str) -> None:
        """Stored clips serve windows that see the same frames, and no others.

        Raises:
            CacheError: The windows look elsewhere, or not always at the same distance.
        """
        wanted = tuple(offsets_s.tolist())
        if len(self.offsets_s) != len(wanted) or not np.allclose(self.offsets_s, wanted, atol=1e-9):
            raise CacheError(
                f"The latent store of {self.frame_store.source.root} holds clips at {self.offsets_s} s and the windows"
                f" look at {wanted} s: build it for these offsets."
            )
        if jitter_s > 0 or starts != "new_frames":
            raise CacheError(
                "Stored latents need windows without jitter that begin at new frames: set frame_jitter_s to 0 and"
                " starts to 'new_frames', or feature_views to 0."
            )

    def gather(self, camera: str, views: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Latents by place: the frames' positions ``[n, T]``, of which the first counts, to ``[n, F, N, C]``.

        Raises:
            CacheError: No such camera.
        """
        if camera not in self.cameras:
            raise CacheError(f"The latent store has no camera {camera!r}.{suggest(camera, self.cameras)}")
        return np.take(self._file, positions[:, 0], axis=0)


def clip_places(frame_store: FrameStore, episode: int, offsets_s: Sequence[float]) -> np.ndarray:
    """Places in the store of the frames of each clip of an episode: int64 ``[n, T]``; past its end, its last frame."""
    source = frame_store.source
    rows = new_frame_rows(source.episodes[episode].length, source.fps, source.video_rate_hz)
    wanted = rows[:, None] + np.asarray(offsets_s, np.float64) * source.fps
    number = nearest(rows, wanted)
    number[:, 0] = np.arange(len(rows))
    return frame_store.first[episode] + number
