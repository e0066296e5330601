"""What an alarm does: stop, hand over to another policy, ask for help; and a control loop that is watched.

loop = MonitoredLoop(ControlLoop(...), PolicyImagination(policy), Monitor(calibration), HandOver(expert), every=8)
action = loop.act(observe)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wamkit.inference.execution import Hold
from wamkit.inference.execution_loop import ControlLoop
from wamkit.inference.monitor import Alarm, Imagined, Monitor
from wamkit.inference.monitor_calibration import MonitorError

Observation = Mapping[str, Any]


class Response(ABC):
    """Decides who acts once an alarm was raised."""

    def __init__(self) -> None:
        self.alarm: Alarm | None = None
        """The first alarm of the episode."""

    def reset(self) -> None:
        """A new episode begins: the policy acts."""
        self.alarm = None

    def raise_alarm(self, alarm: Alarm) -> None:
        """Called for each alarm of the monitor."""
        self.alarm = self.alarm or alarm

    @abstractmethod
    def action(self, observe: Callable[[], Observation], last: np.ndarray | None) -> np.ndarray | None:
        """The action [A] of this period, called once an alarm was raised; None: the policy goes on.

        Args:
            observe: Looks at the world.
            last: What was executed in the period before.
        """


class Stop(Response):
    """Holds until the episode ends.

    Args:
        hold: The action that leaves the robot where it is.
    """

    def __init__(self, hold: Hold) -> None:
        super().__init__()
        self.hold = hold

    def action(self, observe: Callable[[], Observation], last: np.ndarray | None) -> np.ndarray | None:
        """The hold action."""
        return self.hold.action(last)


class HandOver(Response):
    """Another policy acts until the episode ends.

    Args:
        fallback: Observation -> action [A] of this period; another `ControlLoop`'s ``act`` is one, so is a scripted
            retreat.
    """

    def __init__(self, fallback: Callable[[Observation], np.ndarray]) -> None:
        super().__init__()
        self.fallback = fallback

    def action(self, observe: Callable[[], Observation], last: np.ndarray | None) -> np.ndarray | None:
        """The fallback's."""
        return np.asarray(self.fallback(observe()), np.float32)


class AskForHelp(Response):
    """Tells somebody once, holds until they answer with `resume`, and then goes on with the policy.

    Args:
        ask: Called once until it is answered: a message to an operator. It must return at once.
        hold: The action that leaves the robot where it is.
    """

    def __init__(self, ask: Callable[[Alarm], None], hold: Hold) -> None:
        super().__init__()
        self.ask, self.hold, self.waiting = ask, hold, False

    def reset(self) -> None:
        """A new episode begins."""
        super().reset()
        self.waiting = False

    def raise_alarm(self, alarm: Alarm) -> None:
        """Asks, unless an answer is awaited already."""
        super().raise_alarm(alarm)
        if not self.waiting:
            self.waiting = True
            self.ask(alarm)

    def resume(self) -> None:
        """The answer: all is well, or was set right."""
        self.waiting = False

    def action(self, observe: Callable[[], Observation], last: np.ndarray | None) -> np.ndarray | None:
        """The hold action while waiting."""
        return self.hold.action(last) if self.waiting else None


class MonitoredLoop:
    """A control loop whose model's imagination is watched.

    Args:
        loop: The policy under its executor; call this object's ``act`` in its place.
        imagination: Observation -> what the model makes of it. Called in the control loop's thread, on top of what the
            policy computes to act: where it is slow, let it look less often. None: the looks are those of the policy,
            whose source keeps what it imagined while acting (``policy_source(policy, keep_imagined=True)``); they
            cost nothing, and an alarm is raised in the period after the chunk has come.
        monitor: With a calibration.
        response: What an alarm does.
        every: Control periods between two looks of ``imagination``. The model's horizon must be a multiple (of the
            executor's ``n_action_steps``, where the policy looks), or no prediction is compared.

    Raises:
        MonitorError: the monitor has no calibration, or nobody imagines.
    """

    def __init__(
        self,
        loop: ControlLoop,
        imagination: Callable[[Observation], Imagined] | None,
        monitor: Monitor,
        response: Response,
        *,
        every: int | None = None,
    ) -> None:
        if monitor.calibration is None:
            raise MonitorError("A monitor without a calibration never raises an alarm: make one with calibrate().")
        if imagination is not None and (every is None or every < 1):
            raise MonitorError(f"A monitor looks every period or less often, not every {every}.")
        if imagination is None:
            if every is not None:
                raise MonitorError("Where the policy's own looks are compared, it decides when it looks: omit every=.")
            newly_imagined = getattr(loop.source, "newly_imagined", None)
            if newly_imagined is None or newly_imagined() is None:
                raise MonitorError(
                    "The loop's source keeps nothing that was imagined: make it with policy_source(policy, "
                    "keep_imagined=True), or give an imagination."
                )
            self._newly_imagined = newly_imagined
        self.loop, self.imagination, self.monitor, self.response = loop, imagination, monitor, response
        self.every = every
        self._begin()

    def _begin(self) -> None:
        self._periods, self._last = 0, None
        self._asked: list[tuple[float, Observation]] = []

    def reset(self) -> None:
        """A new episode begins."""
        self.loop.reset()
        self.monitor.reset()
        self.response.reset()
        self._begin()

    def act(self, observe: Callable[[], Observation], at: float | None = None) -> np.ndarray:
        """The action of this control period, float32 [A].

        Args:
            observe: Looks at the world; called at most once, and only where somebody needs it.
            at: Seconds since the episode's start; None: no period is ever missed.
        """
        seen: list[Observation] = []

        def look() -> Observation:
            if not seen:
                seen.append(observe())
            return seen[0]

        now = self._periods / self.loop.rate_hz if at is None else at
        if self.imagination is None:
            self._look_back()
        elif self.every is not None and self._periods % self.every == 0:
            self._compare(now, self.imagination(look()))
        self._periods += 1
        action = self.response.action(look, self._last) if self.response.alarm is not None else None
        if action is None:
            action = self.loop.act(look, at)
        else:
            self.loop.override(action, at)
        if self.imagination is None and seen:
            self._asked.append((now, seen[0]))
        self._last = action
        return action

    def _look_back(self) -> None:
        """Compare what the policy imagined at its own looks, now that its answers are there."""
        for observation, imagined in self._newly_imagined() or ():
            # By identity: what an earlier episode asked for is answered to nobody.
            place = next((i for i, (_, asked) in enumerate(self._asked) if asked is observation), None)
            if place is not None:
                at, self._asked = self._asked[place][0], self._asked[place + 1 :]
                self._compare(at, imagined)

    def _compare(self, at: float, imagined: Imagined) -> None:
        alarm = self.monitor.observe(at, imagined)
        if alarm is not None:
            self.response.raise_alarm(alarm)
