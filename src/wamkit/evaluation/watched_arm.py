"""Imagined against seen in closed loop: an arm whose policy is watched by a monitor, each episode by its own.

The looks that are compared are those at which the policy acts, so one of its horizons must be a multiple of the time
that passes between two chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wamkit.evaluation.arms import PolicyArm
from wamkit.evaluation.statistics import success_rate
from wamkit.inference.monitor import Imagined, Monitor, PolicyImagination, imagined_with
from wamkit.inference.monitor_calibration import Calibration, MonitorError, Surprise
from wamkit.inference.policy import Policy


class WatchedPolicy:
    """A policy that keeps what it imagined beside its last chunks; in all else the policy itself.

    Args:
        policy: Whose model imagines.

    Raises:
        MonitorError: It imagines nothing.
    """

    def __init__(self, policy: Policy) -> None:
        PolicyImagination(policy)  # refuses a model that imagines nothing
        self.policy = policy
        self.imagined: list[Imagined] = []
        """One for each sample of the last call."""

    def act_batch(self, observations: list[dict[str, Any]], *, seeds: Sequence[int]) -> np.ndarray:
        """Chunks in physical units, [B, K, A]; a pass of its own where acting computes no future."""
        chunk = self.policy.act(observations, seeds=seeds)
        self.imagined = imagined_with(self.policy, chunk, observations)
        steps = int(chunk.valid.sum(dim=1).min())
        return chunk.actions[:, :steps].numpy()

    def reset(self) -> None:
        """Forget all that was seen."""
        self.policy.reset()

    def __getattr__(self, name: str) -> Any:
        # Its memory and its rate of pictures, where it has them.
        return getattr(self.policy, name)


class WatchedArm(PolicyArm):
    """A policy in closed loop, under a monitor that raises alarms and stops nothing.

    Args:
        policy: The policy.
        calibration: None: surprises are noted and no alarm is raised, as for calibrating.
        name: Of the arm in the report.
        **options: See `wamkit.evaluation.arms.PolicyArm`.
    """

    def __init__(
        self, policy: WatchedPolicy, calibration: Calibration | None = None, name: str = "policy", **options: Any
    ) -> None:
        super().__init__(policy, name, **options)
        self.watched, self.calibration = policy, calibration
        self._monitors: dict[tuple[str, int], tuple[Monitor, list[float]]] = {}

    def acted(self, task: str, trial: int, at: float, sample: int) -> None:
        """Compare this look with what was imagined for it; each episode has a monitor of its own.

        Raises:
            MonitorError: No look ever falls on a moment that was imagined.
        """
        if at == 0.0:
            self._monitors[task, trial] = Monitor(self.calibration), []
        monitor, alarms = self._monitors[task, trial]
        imagined = self.watched.imagined[sample]
        alarm = monitor.observe(at, imagined)
        if alarm is not None:
            alarms.append(round(at, 4))
        if not monitor.history and at > float(imagined.times.max()) + monitor.tolerance_s:
            ahead = ", ".join(f"{time:.3g}" for time in imagined.times)
            raise MonitorError(
                f"The policy imagines {ahead} s ahead and no look falls on such a moment: execute so many actions of"
                " each chunk (n_action_steps) that a horizon is a multiple of their time."
            )

    def notes(self, task: str, trial: int) -> dict[str, Any]:
        """Each surprise as [at, horizon, error, change], and when alarms were raised."""
        monitor, alarms = self._monitors.pop((task, trial))
        noted: dict[str, Any] = {"surprises": [[round(s.at, 4), s.horizon, s.error, s.change] for s in monitor.history]}
        return noted if self.calibration is None else noted | {"alarms_s": alarms}


def surprises_of(episode: Mapping[str, Any]) -> list[Surprise]:
    """What `WatchedArm.notes` noted of an episode."""
    return [Surprise(*row) for row in episode["surprises"]]


def alarm_rates(episodes: Sequence[Mapping[str, Any]], calibration: Calibration) -> dict[str, Any]:
    """How often the monitor raised an alarm, for the record and in words.

    Args:
        episodes: Records of one watched arm.
        calibration: Of the monitor.

    Returns:
        ``threshold``, ``false_alarm_rate``, ``calibration_episodes``; ``response``: what an alarm did, which is nothing
        in an evaluation; under ``successful`` and ``failed`` the share of these episodes with an alarm (a
        `statistics.Rate`), None where there are none.
    """
    rates: dict[str, Any] = {
        "threshold": calibration.threshold,
        "false_alarm_rate": calibration.false_alarm_rate,
        "calibration_episodes": calibration.episodes,
        "response": "none",
    }
    for kind, wanted in (("successful", True), ("failed", False)):
        raised = [bool(episode["alarms_s"]) for episode in episodes if episode["success"] is wanted]
        rates[kind] = success_rate(raised).to_json() if raised else None
    return rates


def alarm_lines(rates: Mapping[str, Any]) -> list[str]:
    """`alarm_rates` for the terminal."""
    lines = []
    for kind in ("successful", "failed"):
        rate = rates[kind]
        if rate is None:
            continue
        low, high = rate["ci95"]
        line = f"alarms in {rate['successes']} of {rate['n']} {kind} episodes [{100 * low:.0f}, {100 * high:.0f}] %"
        promised = f" (calibrated for at most {100 * rates['false_alarm_rate']:g} %)" if kind == "successful" else ""
        lines.append(line + promised)
    return lines
