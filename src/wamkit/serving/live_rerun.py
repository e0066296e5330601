"""The live page's content as a Rerun recording, for who has its viewer; needs the package ``rerun-sdk``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from wamkit.errors import WamkitError
from wamkit.inference.monitor import patch_distance

if TYPE_CHECKING:
    from wamkit.serving.live import WatchedEpisode


class RerunLog:
    """A sink of `wamkit.serving.live.LiveImagination`: pictures, heat maps and the curve, on the robot's clock.

    Args:
        target: A file ending in ``.rrd``, or the address of a viewer (``rerun+http://host:port/proxy``).

    Raises:
        WamkitError: ``rerun-sdk`` is not installed, or the target is neither.
    """

    def __init__(self, target: str) -> None:
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise WamkitError("--rerun needs rerun-sdk: pip install 'wamkit[rerun]', or leave it out.") from error
        is_file, is_viewer = target.endswith(".rrd"), target.startswith("rerun+http")
        if not is_file and not is_viewer:
            raise WamkitError(f"--rerun {target!r} is neither a file .rrd nor an address rerun+http://host:port/proxy.")
        self._recording = self._rerun.RecordingStream("wamkit")
        if is_file:
            self._recording.save(target)
        else:
            self._recording.connect_grpc(target)

    def close(self) -> None:
        """Write what is held back."""
        self._recording.disconnect()

    def __call__(self, number: int, episode: WatchedEpisode, picture: np.ndarray) -> None:
        """One look."""
        rerun, recording, root = self._rerun, self._recording, f"episode_{number}"
        recording.set_time("episode", duration=max(0.0, episode.at))
        recording.log(f"{root}/seen", rerun.Image(picture))
        if episode.points and episode.points[-1].at == episode.at:
            point = episode.points[-1]
            recording.log(f"{root}/surprise/imagined_against_seen", rerun.Scalars(point.error))
            recording.log(f"{root}/surprise/copying_the_present", rerun.Scalars(point.change))
            if point.score is not None:
                recording.log(f"{root}/score", rerun.Scalars(point.score))
        comparison = episode.comparison
        if comparison is None or comparison.surprise.at != episode.at:
            return
        pairs = {
            "change_imagined": (comparison.before, comparison.expected),
            "change_seen": (comparison.before, comparison.seen),
            "not_as_imagined": (comparison.expected, comparison.seen),
        }
        for name, (one, other) in pairs.items():
            heat = patch_distance(one, other, episode.grid)
            if heat is not None:
                recording.log(f"{root}/{name}", rerun.Image(grey(heat, episode.top)))


def grey(heat: np.ndarray, top: float) -> np.ndarray:
    """A map of patches [rows, columns] as a picture uint8; white is ``top``."""
    return (255.0 * np.clip(heat / top, 0.0, 1.0)).round().astype(np.uint8)
