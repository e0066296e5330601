"""What happens after an alarm, period by period."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.inference.execution import Asynchronous, Hold
from wamkit.inference.execution_loop import Blocking, ControlLoop
from wamkit.inference.monitor import Imagined, Monitor
from wamkit.inference.monitor_calibration import Calibration, MonitorError, Scale
from wamkit.inference.monitor_response import AskForHelp, HandOver, MonitoredLoop, Stop

HOLD = Hold((0.0, 9.0), keep=(1,))
CALIBRATION = Calibration(Scale("horizon", {"200": 1.0}), threshold=1.0, false_alarm_rate=0.1, memory=1, episodes=20)


class World:
    """Goes on by one a period; the model expects that, until the world jumps in period 5."""

    def __init__(self) -> None:
        self.period, self.looks, self.chunks = 0, 0, 0

    def observe(self) -> dict:
        self.looks += 1
        return {"x": self.period + (100.0 if self.period >= 5 else 0.0)}

    def imagine(self, observation) -> Imagined:
        x = observation["x"]
        return Imagined(np.full((1, 1), x), np.full((1, 1, 1), x + 2), np.array([0.2]))

    def source(self, observation) -> np.ndarray:
        self.chunks += 1
        return np.tile([[float(self.chunks), 4.0]], (6, 1))


def played(response, periods: int = 12, each=lambda period: None):
    world = World()
    loop = ControlLoop(world.source, Asynchronous(HOLD, 6), rate_hz=10.0, thinking=Blocking())
    watched = MonitoredLoop(loop, world.imagine, Monitor(CALIBRATION), response, every=1)
    actions = []
    for world.period in range(periods):
        each(world.period)
        actions.append(watched.act(world.observe).tolist())
    return actions, world, watched


def test_stop_holds_to_the_end_and_keeps_the_grip():
    actions, world, watched = played(Stop(HOLD))
    assert actions == [[1.0, 4.0]] * 5 + [[0.0, 4.0]] * 7
    assert world.chunks == 1
    assert watched.response.alarm.at == pytest.approx(0.5)
    watched.reset()
    world.period = 0
    assert watched.act(world.observe).tolist() == [2.0, 4.0]


def test_hand_over_gives_the_fallback_every_later_period():
    seen = []
    actions, *_ = played(HandOver(lambda observation: seen.append(observation["x"]) or np.array([7.0, 7.0])))
    assert actions == [[1.0, 4.0]] * 5 + [[7.0, 7.0]] * 7
    assert seen == [100.0 + period for period in range(5, 12)]


def test_help_is_asked_for_once_and_then_the_policy_goes_on_with_a_new_plan():
    asked = []
    response = AskForHelp(asked.append, HOLD)
    # The jump is noticed twice (two predictions from before it); the answer comes in period 9.
    actions, world, _ = played(response, each=lambda period: response.resume() if period == 9 else None)
    assert len(asked) == 1
    assert actions == [[1.0, 4.0]] * 5 + [[0.0, 4.0]] * 4 + [[2.0, 4.0]] * 3
    assert world.chunks == 2


def test_it_looks_once_a_period_at_most():
    _, world, _ = played(HandOver(lambda observation: np.zeros(2)))
    assert world.looks == 12
    lazy = World()
    loop = ControlLoop(lazy.source, Asynchronous(HOLD, 6), rate_hz=10.0, thinking=Blocking())
    watched = MonitoredLoop(loop, lazy.imagine, Monitor(CALIBRATION), Stop(HOLD), every=2)
    for lazy.period in range(4):
        watched.act(lazy.observe)
    assert lazy.looks == 2


def test_a_watch_without_a_threshold_is_refused():
    loop = ControlLoop(World().source, Asynchronous(HOLD, 6), rate_hz=10.0, thinking=Blocking())
    with pytest.raises(MonitorError, match="never raises an alarm"):
        MonitoredLoop(loop, World().imagine, Monitor(), Stop(HOLD), every=1)
    with pytest.raises(MonitorError, match="not every 0"):
        MonitoredLoop(loop, World().imagine, Monitor(CALIBRATION), Stop(HOLD), every=0)
