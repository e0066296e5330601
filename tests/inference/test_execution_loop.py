"""The loop: it never waits unless told to, tells the source what was executed, and keeps time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from wamkit.inference.execution import Asynchronous, ExecutionError, Hold, RealTimeChunking, Synchronous
from wamkit.inference.execution_loop import Background, Blocking, ControlLoop, InpaintingSource

HOLD = Hold((-1.0,))
RATE = 10.0


class Source:
    """Counts calls; waits for permission where it is given a gate."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.gate, self.calls, self.told = gate, 0, []
        self.threads: set[int] = set()
        self.answered = threading.Semaphore(0)

    def __call__(self, observation) -> np.ndarray:
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        self.threads.add(threading.get_ident())
        self.told.append(("asked", observation["task"]))
        self.calls += 1
        return (100 * (self.calls - 1) + np.arange(8, dtype=np.float32))[:, None]

    def executed(self, actions) -> None:
        self.told.append(("executed", actions[:, 0].tolist()))

    def reset(self) -> None:
        self.told.append(("reset",))


class Inpainter(Source):
    def inpaint(self, observation, previous, delay):
        self.told.append(("inpaint", previous[:, 0].tolist(), delay))
        return self(observation)


def look(task: str = "go"):
    return {"task": task}


def first(actions) -> list[int]:
    return [int(action[0]) for action in actions]


def test_blocking_and_synchronous_is_the_plain_way():
    source = Source()
    loop = ControlLoop(source, Synchronous(HOLD, 3), rate_hz=RATE, thinking=Blocking())
    assert first(loop.act(look()) for _ in range(7)) == [0, 1, 2, 100, 101, 102, 200]
    assert source.threads == {threading.get_ident()}


def test_the_loop_goes_on_while_the_source_thinks():
    gate = threading.Semaphore(0)
    source = Source(gate)
    with ControlLoop(source, Asynchronous(HOLD, 4), rate_hz=RATE) as loop:
        assert first(loop.act(look()) for _ in range(3)) == [-1, -1, -1]
        gate.release()
        wait_for(loop)
        assert first(loop.act(look()) for _ in range(6)) == [0, 1, 2, 3, 4, 5]  # the next is asked for at 4
        gate.release()
        wait_for(loop)
        assert first(loop.act(look()) for _ in range(1)) == [102]
        gate.release(5)
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}


def wait_for(loop: ControlLoop) -> None:
    """Until the answer under way is there, without taking it."""
    assert isinstance(loop.thinking, Background)
    assert loop.thinking._call is not None
    loop.thinking._call.result(timeout=20)


def test_the_source_hears_what_was_executed_and_nothing_else():
    source = Source()
    loop = ControlLoop(source, Asynchronous(HOLD, 4), rate_hz=RATE, thinking=Blocking())
    loop.reset()
    for _ in range(4):
        loop.act(look())
    loop.executed(np.array([55.0]))  # a safety layer changed the last action
    loop.act(look("on"))
    loop.override(np.array([66.0]))
    loop.act(look("again"))
    loop.reset()
    loop.act(look("new"))
    assert source.told == [
        ("reset",),
        ("asked", "go"),
        ("executed", [0.0, 1.0, 2.0, 55.0]),
        ("asked", "on"),
        ("executed", [100.0, 66.0]),
        ("asked", "again"),
        ("reset",),
        ("asked", "new"),
    ]


def test_time_that_passed_makes_actions_stale():
    loop = ControlLoop(Source(), Asynchronous(HOLD, 8), rate_hz=RATE, thinking=Blocking())
    assert loop.act(look(), at=0.0) == 0
    assert loop.act(look(), at=0.11) == 1
    assert loop.act(look(), at=0.5) == 5
    assert loop.executor.counts.missed == 3
    with pytest.raises(ExecutionError, match="reset at the start"):
        loop.act(look(), at=0.1)


def test_it_looks_only_when_it_asks():
    looks = []
    loop = ControlLoop(Source(), Synchronous(HOLD, 4), rate_hz=RATE, thinking=Blocking())
    for _ in range(8):
        loop.act(lambda: looks.append(1) or look())
    assert len(looks) == 2


def test_in_painting_reaches_the_source():
    source = Inpainter()
    assert isinstance(source, InpaintingSource)
    loop = ControlLoop(source, RealTimeChunking(HOLD, 5), rate_hz=RATE, thinking=Blocking())
    for _ in range(6):
        loop.act(look())
    assert ("inpaint", [5.0, 6.0, 7.0], 0) in source.told
    with pytest.raises(ExecutionError, match=r"Source has not: use Asynchronous"):
        ControlLoop(Source(), RealTimeChunking(HOLD, 5), rate_hz=RATE)


@pytest.mark.parametrize("thinking", [Blocking, Background])
def test_errors_of_the_source_reach_the_loop_which_then_asks_again(thinking):
    class Flaky(Source):
        broken = True

        def executed(self, actions):
            if self.broken:
                raise RuntimeError("no connection")
            super().executed(actions)

    source, sent = Flaky(), []
    with ControlLoop(source, Asynchronous(HOLD, 2), rate_hz=RATE, thinking=thinking()) as loop:

        def go_on_until(done) -> None:
            while not done():
                sent.append(int(loop.act(look())[0]))
                time.sleep(0.001)

        with pytest.raises(RuntimeError, match="no connection"):
            go_on_until(lambda: False)
        source.broken = False
        go_on_until(lambda: len(source.told) >= 3)
    # Nothing that was executed is lost on the source.
    heard = [action for kind, *rest in source.told if kind == "executed" for action in rest[0]]
    assert len(heard) >= 2
    assert heard == sent[: len(heard)]


def test_an_answer_from_before_a_reset_is_never_executed():
    gate = threading.Semaphore(0)
    source = Source(gate)
    with ControlLoop(source, Asynchronous(HOLD, 4), rate_hz=RATE) as loop:
        loop.act(look("old"))
        loop.reset()
        loop.act(look("new"))
        gate.release(2)
        wait_for(loop)
        # The first answer is of the old episode; the first executed one is the second call's.
        assert first(loop.act(look()) for _ in range(2)) == [100, 101]
        gate.release(5)
    assert source.told[:3] == [("asked", "old"), ("reset",), ("asked", "new")]


def test_a_rate_is_positive():
    with pytest.raises(ExecutionError, match="above 0 Hz"):
        ControlLoop(Source(), Synchronous(HOLD, 4), rate_hz=0.0)


class Late(Blocking):
    """The answer is there so many control periods after the question."""

    def __init__(self, periods: int) -> None:
        super().__init__()
        self.periods, self.left = periods, 0

    def begin(self, job) -> None:
        super().begin(job)
        self.left = self.periods + 1

    def finished(self):
        self.left -= 1
        return None if self.left > 0 else super().finished()


def test_a_source_that_knows_whole_frames_is_asked_at_whole_frames():
    """The robot holds for the first answer, and the executor would then ask in the middle of a frame."""
    source = Source()
    source.look_interval_s = 0.4
    loop = ControlLoop(source, Asynchronous(HOLD, 4), rate_hz=RATE, thinking=Late(3))
    loop.reset()
    for _ in range(20):
        loop.act(look())
    told = [entry[1] for entry in source.told if entry[0] == "executed"]
    assert [len(actions) for actions in told] == [8, 4, 4]
    assert told[0][:3] == [-1.0] * 3
    assert loop.executor.counts.held == 3
    with pytest.raises(ExecutionError, match="every 4 actions and the executor asks after 3: .* a multiple of 4"):
        ControlLoop(source, Asynchronous(HOLD, 3), rate_hz=RATE)
