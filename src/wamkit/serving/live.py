"""Imagined against observed, live: what the server keeps of each episode for its page, and how it is drawn.

Each request is a look at the world. What the model imagined for that moment, one horizon before, is compared with what
it sees (`wamkit.inference.monitor`); the page (`live_page`) asks for the newest comparison and the curve of surprises.
Looks come from the inference thread, the page's questions from the event loop's helpers.
"""

from __future__ import annotations

import importlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wamkit.inference.monitor import Comparison, Imagined, Monitor, patch_distance
from wamkit.inference.monitor_calibration import Calibration, MonitorError
from wamkit.serving.live_pictures import feature_panels, pixel_panels

_EPISODES, _POINTS, _FRAMES, _ALARMS = 12, 1200, 64, 100
"""What is kept: so many episodes, and of each so many comparisons, camera frames and alarms."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The space that a model imagines in, and how it lies over the camera's picture."""

    space: Literal["features", "latents", "pixels"]
    grid: tuple[int, int] | None
    """Rows and columns of patches; None: they have no place in the picture, and are shown as a curve alone."""
    horizons_s: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """One comparison as a point of the curve; distances are mean squares in the model's space."""

    at: float
    error: float
    """Imagined against seen."""
    change: float
    """Seen then against seen now: the error of copying the present."""
    score: float | None
    """Normalised, where there is a calibration."""


Sink = Callable[[int, "WatchedEpisode", np.ndarray], None]
"""Told of each look: the episode's number, its state, and the camera's picture."""


class WatchedEpisode:
    """One episode of one session."""

    def __init__(self, live: LiveImagination) -> None:
        self._live, self.grid = live, live.view.grid
        self.number = 0
        """Counted from 1 by first looks."""
        self.task, self.at, self.looks = "", -1.0, 0
        self.imagined: Imagined | None = None
        self.comparison: Comparison | None = None
        self.points: deque[Look] = deque(maxlen=_POINTS)
        self.alarms: deque[float] = deque(maxlen=_ALARMS)
        self.unmatched = 0
        self.top = 1e-12
        """The greatest change of a patch so far: full colour of all heat maps."""
        self._frames: deque[tuple[float, np.ndarray]] = deque(maxlen=_FRAMES)
        self._monitor = live.monitor()

    def look(self, at: float, task: str, picture: np.ndarray, imagined: Imagined) -> None:
        """One request.

        Args:
            at: Seconds since the episode's start. Where they run backwards, the clock began anew, and so does this.
            task: The instruction.
            picture: Of the primary camera, uint8 [H, W, 3].
            imagined: What the model makes of it.
        """
        # At the model's size: a camera's own pictures would be a hundred times as large to keep.
        shown = self._live.show(picture)
        with self._live.lock:
            if not self.looks:
                self.number = self._live.begun(self)
            if at <= self.at:
                self._monitor.reset()
                self._frames.clear()
                self.points.clear()
                self.comparison = None
            self.at, self.task, self.imagined = at, task, imagined
            alarm = self._monitor.observe(at, imagined)
            new, self._monitor.history = self._monitor.history, []
            self.points.extend(Look(s.at, s.error, s.change, self._monitor.score) for s in new)
            if new:
                self.comparison = self._monitor.latest
            if alarm is not None:
                self.alarms.append(at)
            self.unmatched = self._monitor.unmatched
            self._frames.append((at, shown))
            changes = [patch_distance(imagined.present, imagined.values[0], self.grid)]
            if self.comparison is not None:
                changes.append(patch_distance(self.comparison.before, self.comparison.seen, self.grid))
            self.top = max(self.top, *(float(np.quantile(heat, 0.99)) for heat in changes if heat is not None), 0.0)
            self.looks += 1
        for sink in self._live.sinks:
            sink(self.number, self, shown)

    def picture_at(self, at: float) -> np.ndarray | None:
        """The camera's picture nearest to a time; None where none is kept."""
        if not self._frames:
            return None
        return min(self._frames, key=lambda frame: abs(frame[0] - at))[1]


class LiveImagination:
    """All episodes that the page can show.

    Args:
        view: How the model imagines.
        calibration: Of the alarm; None: the page shows distances without a threshold.
        show: The camera's picture -> as the model sees it, uint8 [h, w, 3].
        sinks: Told of each look, in the inference thread.

    Raises:
        MonitorError: The calibration is of other horizons.
    """

    def __init__(
        self,
        view: View,
        calibration: Calibration | None = None,
        *,
        show: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
        sinks: Sequence[Sink] = (),
    ) -> None:
        if calibration is not None:
            wanted = {str(round(1000 * horizon)) for horizon in view.horizons_s}
            if not wanted <= calibration.scale.usual.keys():
                raise MonitorError(
                    f"the calibration is of horizons of {', '.join(calibration.scale.usual)} ms and this policy"
                    f" imagines {', '.join(sorted(wanted, key=int))} ms ahead: calibrate the monitor with this policy."
                )
        # What draws the heat maps takes seconds to import: now, and not while the first page keeps a robot waiting.
        importlib.import_module("matplotlib")
        self.view, self.calibration, self.sinks = view, calibration, tuple(sinks)
        self.lock = threading.Lock()
        self.show = show
        self._episodes: deque[WatchedEpisode] = deque(maxlen=_EPISODES)
        self._begun = 0

    def monitor(self) -> Monitor:
        """A new episode's; a live clock ticks less evenly than a simulator's, so it is more tolerant."""
        return Monitor(self.calibration, tolerance_s=max(0.02, 0.1 * min(self.view.horizons_s)))

    def episode(self) -> WatchedEpisode:
        """A session's next episode; it is listed once it is looked at."""
        return WatchedEpisode(self)

    def begun(self, episode: WatchedEpisode) -> int:
        """List an episode; its number."""
        self._episodes.append(episode)
        self._begun += 1
        return self._begun

    def state(self, number: int | None = None, known: str = "") -> dict[str, Any]:
        """What the page shows, ready for JSON.

        Args:
            number: Of the episode; None or one that is gone: the one that began last.
            known: The version that the page has; if it is still the newest, pictures and curve are left out.
        """
        with self.lock:
            episodes = list(self._episodes)
            chosen = next((episode for episode in episodes if episode.number == number), None)
            chosen = chosen or (episodes[-1] if episodes else None)
            listed = [{"number": e.number, "task": e.task, "looks": e.looks, "alarms": len(e.alarms)} for e in episodes]
            state: dict[str, Any] = {"episodes": listed, "version": "", "space": self.view.space}
            if chosen is None:
                return state
            state["version"] = f"{chosen.number}.{chosen.looks}"
            if state["version"] == known:
                return state
            imagined, comparison, top, at = chosen.imagined, chosen.comparison, chosen.top, chosen.at
            now = chosen.picture_at(at)
            then = None if comparison is None else chosen.picture_at(at - comparison.surprise.horizon)
            points = [[round(p.at, 4), p.error, p.change, p.score] for p in chosen.points]
            state["episode"] = {
                "number": chosen.number,
                "task": chosen.task,
                "at": at,
                "points": points,
                "alarms": list(chosen.alarms),
                "unmatched": chosen.unmatched,
            }
        if self.calibration is not None:
            state["threshold"] = self.calibration.threshold
            state["false_alarm_rate"] = self.calibration.false_alarm_rate
        assert imagined is not None
        state["episode"]["panels"] = self._panels(imagined, comparison, now, then, top)
        return state

    def _panels(
        self,
        imagined: Imagined,
        comparison: Comparison | None,
        now: np.ndarray | None,
        then: np.ndarray | None,
        top: float,
    ) -> list[dict[str, str]]:
        if self.view.space == "pixels":
            return pixel_panels(imagined, comparison)
        assert now is not None
        return feature_panels(imagined, comparison, now, now if then is None else then, self.view.grid, top)
