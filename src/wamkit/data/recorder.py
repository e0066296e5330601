"""Record a LeRobotDataset v3 through LeRobot's own writer, such that finished episodes survive a kill.

Each episode gets its own data, video and metadata file, whole when :meth:`LeRobotRecorder.save_episode` returns. (The
reference appends to one file and writes its footer at the end: a killed recording loses every row since it began.)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av.logging
import numpy as np
from av.error import FFmpegError

from wamkit.data.embodiments import embodiment_id
from wamkit.data.episode_encoder import EpisodeEncoder
from wamkit.data.lerobot_files import EXTRA_PATH, IMAGE_PREFIX, SUCCESS_FEATURE, DatasetError, read_extra
from wamkit.data.recovery import MARKER_PATH, recover, write_exact_statistics
from wamkit.errors import suggest
from wamkit.json_files import write_json

KEY_FRAME_DISTANCE = 2  # random access decodes at most two frames
QUALITY_CRF = 18
PRESET = "veryfast"
# No B-frames and no look-ahead: with two-frame groups they bring nothing, and with them the encoder's choices (and so
# the bytes) vary between processes.
ENCODER_OPTIONS = {"bf": "0", "mbtree": "0", "rc-lookahead": "0", "sc_threshold": "0"}
_ONE_EPISODE_A_FILE_MB = 1e-9  # LeRobot starts a new file where the next episode would exceed this


class LeRobotRecorder:
    """Writes episodes into a new data set, or appends them to one. A context manager.

    Args:
        root: Folder of the data set.
        fps: Rows per second, a whole number.
        cameras: Name -> (height, width), both even.
        state_names: Names of the dimensions of ``observation.state``; ``()`` = no state.
        action_names: Names of the dimensions of ``action``; ``()`` = an action-free data set.
        embodiment: A name of :data:`wamkit.data.embodiments.EMBODIMENTS`.
        extra_features: Further columns: feature key -> names of its float32 dimensions, or a LeRobot feature.
        resume: Append to the data set where it exists (restoring it first if its recording was interrupted).
        record_success: Whether :meth:`save_episode` stores success, as LeRobot's ``next.success`` (True in the last
            row of a successful episode). False: the recording does not say.
        video_rate_hz: Rate at which frames are new, where that is less than ``fps``; the caller repeats frames.
        metadata: Further entries of ``meta/wamkit.json``, such as ``{"source": ...}``.

    Raises:
        DatasetError: If the folder exists and ``resume`` is False, or holds a data set with other features.
    """

    def __init__(
        self,
        root: Path | str,
        fps: float,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        embodiment: str,
        *,
        extra_features: Mapping[str, Sequence[str] | Mapping[str, Any]] | None = None,
        resume: bool = False,
        record_success: bool = True,
        video_rate_hz: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        embodiment_id(embodiment)
        if fps != int(fps) or fps < 1:
            raise DatasetError(f"A LeRobotDataset has a whole number of rows a second, not {fps:g}: resample first.")
        for camera, size in cameras.items():
            if size[0] % 2 or size[1] % 2:
                raise DatasetError(
                    f"Camera {camera!r} has {size[0]}x{size[1]} pixels; H.264 needs even sizes: crop it."
                )
        self.root = Path(root)
        self.fps = int(fps)
        self.cameras = dict(cameras)
        self._features = _features(cameras, state_names, action_names, extra_features or {}, record_success)
        self._record_success = record_success
        self._frames = 0
        self._closed = False
        extra = {"embodiment": embodiment, "video_rate_hz": float(video_rate_hz or fps), **(metadata or {})}
        self._open(embodiment, extra, resume)

    def _open(self, embodiment: str, extra: dict[str, Any], resume: bool) -> None:
        # Heavy: LeRobot's data set package brings its training code along.
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets.dataset_writer import DatasetWriter
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        av.logging.set_libav_level(av.logging.ERROR)  # the encoder prints a page for each file otherwise
        repo_id = f"local/{self.root.name}"
        exists = self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir()))
        if exists and not resume:
            raise DatasetError(f"{self.root} exists: choose another folder, or append to it with resume=True.")
        if exists and not (self.root / "meta/info.json").is_file() and not (self.root / MARKER_PATH).is_file():
            raise DatasetError(f"{self.root} exists and is not a LeRobotDataset: choose another folder.")
        encoder = RGBEncoderConfig(
            vcodec="h264", g=KEY_FRAME_DISTANCE, crf=QUALITY_CRF, preset=PRESET, extra_options=dict(ENCODER_OPTIONS)
        )
        if exists:
            recover(self.root)
            dataset = LeRobotDataset.resume(repo_id, root=self.root, rgb_encoder=encoder, video_backend="pyav")
            self._refuse_other_features(dataset)
        else:
            if self.root.is_dir():
                self.root.rmdir()  # LeRobot creates it
            dataset = LeRobotDataset.create(
                repo_id,
                self.fps,
                self._features,
                root=self.root,
                robot_type=embodiment,
                rgb_encoder=encoder,
                video_backend="pyav",
            )
            write_json(self.root / EXTRA_PATH, extra)
        dataset.meta.info.data_files_size_in_mb = _ONE_EPISODE_A_FILE_MB  # type: ignore[assignment]
        dataset.meta.info.video_files_size_in_mb = _ONE_EPISODE_A_FILE_MB  # type: ignore[assignment]
        dataset.meta._metadata_buffer_size = 1
        self._writer = dataset.writer = DatasetWriter(
            meta=dataset.meta,
            root=dataset.root,
            rgb_encoder=encoder,
            depth_encoder=None,
            encoder_threads=1,
            batch_encoding_size=1,
            streaming_encoder=EpisodeEncoder(self.fps, encoder) if self.cameras else None,  # type: ignore[arg-type]
            initial_frames=dataset.meta.total_frames,
        )
        self._dataset = dataset
        write_json(self.root / MARKER_PATH, dataset.meta.info.to_dict())

    @property
    def episodes(self) -> int:
        """Finished episodes in the data set."""
        return self._dataset.meta.total_episodes

    @property
    def rows(self) -> int:
        """Rows of the finished episodes."""
        return self._dataset.meta.total_frames

    @property
    def frames(self) -> int:
        """Frames of the running episode."""
        return self._frames

    def add_frame(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray | Sequence[float] | None = None,
        action: np.ndarray | Sequence[float] | None = None,
        task: str = "",
        **extra: np.ndarray,
    ) -> None:
        """Adds one row to the running episode: what was seen, and the action taken on it.

        Args:
            images: Camera -> uint8 ``[H, W, 3]``.
            state: ``[S]``, or None where the data set has none.
            action: ``[A]`` in physical units, or None where the data set has none.
            task: Instruction; ``""`` = none.
            **extra: One array for each extra feature.

        Raises:
            DatasetError: If something is missing, has other dimensions or is not finite. The row is not added.
        """
        where = f"frame {self._frames} of episode {self.episodes}"
        frame: dict[str, Any] = {IMAGE_PREFIX + camera: image for camera, image in images.items()}
        frame |= {} if state is None else {"observation.state": state}
        frame |= {} if action is None else {"action": action}
        frame |= extra
        if self._record_success:
            frame[SUCCESS_FEATURE] = np.array([False])
        for key in self._features.keys() - frame.keys():
            raise DatasetError(f"{where} lacks {key!r}, which this data set records: pass it, or leave it out of all.")
        row: dict[str, Any] = {"task": task}
        for key, value in frame.items():
            if key not in self._features:
                raise DatasetError(f"{where} brings unknown {key!r}.{suggest(key, self._features)}")
            row[key] = self._checked(key, value, where)
        with self._disk_errors():
            self._dataset.add_frame(row)
        self._frames += 1

    def save_episode(self, success: bool = True) -> int:
        """Finishes the running episode; when this returns, it survives a kill.

        Args:
            success: Stored where the data set records success.

        Returns:
            The episode's index.

        Raises:
            DatasetError: If the episode has no frames, or cannot be written; finished episodes stay intact.
        """
        from lerobot.utils.utils import SuppressProgressBars

        if self._frames == 0:
            raise DatasetError(f"Episode {self.episodes} has no frames: call add_frame before save_episode.")
        dataset, index = self._dataset, self.episodes
        if self._record_success:
            self._writer.episode_buffer[SUCCESS_FEATURE][-1] = np.array([bool(success)])
        with self._disk_errors(), SuppressProgressBars():
            dataset.save_episode()
            # Footers now, not at the end; the next episode starts files of its own.
            self._writer.close_writer()
            dataset.meta._close_writer()
            write_json(self.root / MARKER_PATH, dataset.meta.info.to_dict())
        self._frames = 0
        return index

    def set_metadata(self, **entries: Any) -> None:
        """Sets entries of ``meta/wamkit.json`` at once."""
        write_json(self.root / EXTRA_PATH, {**read_extra(self.root), **entries})

    def discard_episode(self) -> None:
        """Throws the running episode away."""
        if self._frames:
            self._dataset.clear_episode_buffer()
            self._frames = 0

    def finalize(self) -> None:
        """Closes the data set: exact statistics, totals, no trace of the recording. Discards an unfinished episode."""
        if self._closed:
            return
        from lerobot.datasets.utils import DEFAULT_DATA_FILE_SIZE_IN_MB, DEFAULT_VIDEO_FILE_SIZE_IN_MB

        self._closed = True
        self.discard_episode()
        with self._disk_errors():
            self._dataset.finalize()
            info = self._dataset.meta.info
            info.data_files_size_in_mb = DEFAULT_DATA_FILE_SIZE_IN_MB
            info.video_files_size_in_mb = DEFAULT_VIDEO_FILE_SIZE_IN_MB
            write_json(self.root / "meta/info.json", info.to_dict())
            if self.episodes:
                write_exact_statistics(self.root)
            (self.root / MARKER_PATH).unlink(missing_ok=True)
            shutil.rmtree(self.root / "images", ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pending, index = self._frames, self.episodes
        self.finalize()
        if pending and error is None:
            raise DatasetError(
                f"Episode {index} was dropped with {pending} frames: end it with save_episode or discard_episode."
            )

    def _checked(self, key: str, value: Any, where: str) -> Any:
        feature = self._features[key]
        shape, dtype = tuple(feature["shape"]), feature["dtype"]
        if dtype == "string":
            return value
        wanted = np.dtype(np.uint8 if dtype == "video" else dtype)
        array = np.asarray(value)
        if array.shape != shape or (dtype == "video" and array.dtype != np.uint8):
            raise DatasetError(
                f"{where}: {key!r} is {array.dtype}{list(array.shape)} and the data set records {wanted}{list(shape)}: "
                "convert it."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(-1))).tolist()
            raise DatasetError(
                f"{where}: {key!r} is not finite in dimensions {bad}: discard the episode, or correct it; the "
                f"{self.episodes} finished episodes are safe."
            )
        return array.astype(wanted, copy=False)

    def _disk_errors(self) -> _DiskErrors:
        return _DiskErrors(self)

    def _give_up(self) -> None:
        """After a failed write: closes what is open and removes the broken episode's files."""
        self._closed, self._frames = True, 0
        dataset = self._dataset
        for close in (self._writer.cancel_pending_videos, self._writer.close_writer, dataset.meta._close_writer):
            try:
                close()
            except Exception:
                continue  # the first error is the one to tell
        self._writer._finalized = dataset.meta._finalized = dataset._is_finalized = True
        recover(self.root)

    def _refuse_other_features(self, dataset: Any) -> None:
        from lerobot.utils.constants import DEFAULT_FEATURES

        found = {key: f for key, f in dataset.meta.features.items() if key not in DEFAULT_FEATURES}
        differing = sorted(found.keys() ^ self._features.keys())
        differing += sorted(
            key
            for key in found.keys() & self._features.keys()
            if (found[key]["dtype"], tuple(found[key]["shape"]))
            != (self._features[key]["dtype"], tuple(self._features[key]["shape"]))
        )
        if dataset.meta.fps != self.fps:
            differing.append(f"fps ({dataset.meta.fps} there, {self.fps} here)")
        if differing:
            raise DatasetError(
                f"{self.root} cannot be continued, it differs in {', '.join(differing)}: record into another folder."
            )


class _DiskErrors:
    """Turns a failed write into one sentence, with the finished episodes left intact."""

    def __init__(self, recorder: LeRobotRecorder):
        self._recorder = recorder

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError | FFmpegError):
            index = self._recorder.episodes
            self._recorder._give_up()
            raise DatasetError(
                f"Episode {index} could not be written to {self._recorder.root} ({error}): free disk space and go on "
                "with resume=True; the finished episodes are intact."
            ) from error


def _features(
    cameras: Mapping[str, tuple[int, int]],
    state_names: Sequence[str],
    action_names: Sequence[str],
    extra: Mapping[str, Sequence[str] | Mapping[str, Any]],
    record_success: bool,
) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        IMAGE_PREFIX + camera: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for camera, size in cameras.items()
    }
    vectors = {"observation.state": tuple(state_names), "action": tuple(action_names)}
    for key, names in {**{k: v for k, v in vectors.items() if v}, **extra}.items():
        if isinstance(names, Mapping):
            features[key] = dict(names)
        else:
            features[key] = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
    if record_success:
        features[SUCCESS_FEATURE] = {"dtype": "bool", "shape": (1,), "names": None}
    return features
