"""Which action is executed when. Actions tell where they come from: 100 x number of the request + their place."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from wamkit.inference.execution import (
    EXECUTORS,
    Asynchronous,
    ExecutionError,
    Executor,
    Hold,
    RealTimeChunking,
    Synchronous,
    TemporalEnsembling,
)

HOLD = Hold((-1.0,))
CHUNK = 8


def chunk_of(number: int, length: int = CHUNK) -> np.ndarray:
    return (100 * number + np.arange(length, dtype=np.float32))[:, None]


def played(executor: Executor, latency: int, ticks: int, answers: list | None = None) -> list[int]:
    """The first number of each action, with answers that come ``latency`` ticks after their request."""
    shown, under_way = [], None
    for _ in range(ticks):
        if under_way is not None and executor.tick - under_way.tick >= latency:
            executor.receive(under_way, chunk_of(under_way.number))
            under_way = None
        request = executor.request()
        if request is not None:
            if answers is not None:
                answers.append(request)
            if latency == 0:
                executor.receive(request, chunk_of(request.number))
            else:
                under_way = request
        shown.append(int(executor.step().action[0]))
    return shown


@pytest.mark.parametrize("name", sorted(set(EXECUTORS) - {"temporal_ensembling"}))
def test_without_latency_all_execute_the_same(name):
    assert played(EXECUTORS[name](HOLD, 4), 0, 9) == [0, 1, 2, 3, 100, 101, 102, 103, 200]


def test_synchronous_holds_while_it_waits_and_executes_each_chunk_from_its_first_action():
    executor = Synchronous(HOLD, 4)
    assert played(executor, 2, 14) == [-1, -1, 0, 1, 2, 3, -1, -1, 100, 101, 102, 103, -1, -1]
    assert (executor.counts.held, executor.counts.stale, executor.counts.requests) == (6, 0, 3)


def test_asynchronous_goes_on_and_drops_what_is_stale():
    executor = Asynchronous(HOLD, 4)
    # The robot holds for the first answer, whose actions therefore wait. From then on it never holds: the second chunk
    # was asked for at action 4 and comes two ticks later, when its actions 0 and 1 have passed.
    assert played(executor, 2, 12) == [-1, -1, 0, 1, 2, 3, 4, 5, 102, 103, 104, 105]
    assert (executor.counts.held, executor.counts.stale) == (2, 2)


def test_asynchronous_pauses_its_plan_where_the_latency_is_longer_than_the_chunk():
    executor = Asynchronous(HOLD, 4)
    shown = played(executor, 12, 60)
    # Chunk 0 waits for its answer; chunk 1, asked for at action 4, comes after chunk 0 has ended.
    assert shown[:12] == [-1] * 12
    assert shown[12:20] == list(range(8))
    assert shown[20:28] == [-1] * 8
    assert shown[28:32] == [104, 105, 106, 107]


def test_actions_age_while_holding_where_the_world_moves_by_itself():
    executor = Asynchronous(HOLD, 4, hold_ages=True)
    assert played(executor, 2, 8) == [-1, -1, 2, 3, 4, 5, 102, 103]
    late = Asynchronous(HOLD, 4, hold_ages=True)
    assert set(played(late, CHUNK, 40)) == {-1}
    assert late.counts.stale == CHUNK * (late.counts.requests - 1) > 0


def test_missed_ticks_make_actions_stale():
    executor = Asynchronous(HOLD, 4)
    executor.receive(executor.request(), chunk_of(0))
    assert executor.step().action == 0
    executor.skip(2)
    assert executor.step().action == 3
    assert executor.counts.missed == 2
    waiting = Synchronous(HOLD, 4)
    request = waiting.request()
    waiting.skip(5)  # the loop itself waited for the answer
    waiting.receive(request, chunk_of(0))
    assert waiting.step().action == 0


def test_ensembling_weighs_the_oldest_most():
    executor = TemporalEnsembling(HOLD, 2, decay=0.5)
    played(executor, 0, 4)
    executor.receive(executor.request(), chunk_of(2))
    # Three chunks speak of this tick: what they say of it is 4, 102 and 200.
    weights = np.exp([0.0, -0.5, -1.0])
    np.testing.assert_allclose(executor.step().action, np.dot(weights, [4, 102, 200]) / weights.sum(), rtol=1e-6)


def test_ensembling_forgets_chunks_that_have_ended():
    executor = TemporalEnsembling(HOLD, 4)
    played(executor, 0, 400)
    assert len(executor._chunks) <= 2


def test_chunking_passes_the_plan_and_the_delay_that_it_saw():
    asked: list = []
    executor = RealTimeChunking(HOLD, 4, expected_latency=3)
    played(executor, 2, 20, asked)
    assert asked[0].previous is None
    first, later = asked[1], asked[2]
    assert first.previous[:, 0].tolist() == [4, 5, 6, 7]
    assert first.delay == 2  # as long as the first answer took, not what was expected before
    assert later.previous[:, 0].tolist() == [104, 105, 106, 107]


def test_chunking_forecasts_the_greatest_of_the_last_latencies():
    executor = RealTimeChunking(HOLD, 2, expected_latency=5)
    delays = []
    for latency in (0, 3, 1, 0):
        request = executor.request()
        delays.append(request.delay)
        for _ in range(latency):
            executor.step()
        executor.receive(request, chunk_of(request.number))
        while executor._plan_time - executor._asked_at < 2:
            executor.step()
    assert delays == [0, 0, 3, 3]


def test_the_delay_never_exceeds_the_plan():
    executor = RealTimeChunking(HOLD, 6, expected_latency=5)
    asked: list = []
    played(executor, 20, 100, asked)
    assert asked[1].delay == len(asked[1].previous) == 2


def test_a_frozen_prefix_joins_without_a_seam():
    """Whatever the source returns after the prefix, what is executed up to the answer is the old plan."""
    executor = RealTimeChunking(HOLD, 4)
    under_way, shown = None, []
    for _ in range(30):
        if under_way is not None and executor.tick - under_way.tick >= 3:
            answer = chunk_of(under_way.number)
            if under_way.previous is not None:
                answer[: under_way.delay] = under_way.previous[: under_way.delay]
            executor.receive(under_way, answer)
            under_way = None
        under_way = executor.request() or under_way
        shown.append(int(executor.step().action[0]))
    # Chunk 1 is asked for at action 4 and takes over three ticks later, at its action 3.
    assert shown[3:15] == [0, 1, 2, 3, 4, 5, 6, 103, 104, 105, 106, 203]


def test_hold_keeps_what_it_was_told_to_keep():
    hold = Hold((0.0, 0.0, 0.5), keep=(2,))
    assert hold.action(None).tolist() == [0.0, 0.0, 0.5]
    assert hold.action(np.array([3.0, 4.0, -1.0])).tolist() == [0.0, 0.0, -1.0]
    with pytest.raises(ExecutionError, match="count from 0"):
        Hold((0.0,), keep=(1,))


def test_an_override_voids_plan_and_answer():
    executor = Asynchronous(Hold((0.0,), keep=(0,)), 4)
    executor.receive(executor.request(), chunk_of(0))
    for _ in range(4):
        executor.step()
    late = executor.request()
    executor.override(np.array([7.0]))
    with pytest.raises(ExecutionError, match="not under way"):
        executor.receive(late, chunk_of(late.number))
    assert executor.request().tick == 5
    assert executor.step().action == 7.0  # held: nothing is planned any more


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((8, 2)), r"\[K, 1\].*\[8, 2\]"),
        (np.zeros((0, 1)), "at least one row"),
        (np.full((8, 1), np.nan), "NaN"),
        (np.zeros((3, 1)), "Cannot execute 4 actions of a chunk of 3"),
    ],
)
def test_what_is_no_chunk_is_refused(chunk, message):
    executor = Asynchronous(HOLD, 4)
    with pytest.raises(ExecutionError, match=message):
        executor.receive(executor.request(), chunk)


def test_answers_are_taken_once_and_not_across_a_reset():
    executor = Asynchronous(HOLD, 4)
    request = executor.request()
    assert executor.request() is None
    executor.receive(request, chunk_of(0))
    with pytest.raises(ExecutionError, match="one answer"):
        executor.receive(request, chunk_of(0))
    executor.reset()
    old = executor.request()
    executor.reset()
    with pytest.raises(ExecutionError, match="reset"):
        executor.receive(old, chunk_of(0))


def test_a_chunk_is_copied():
    executor, chunk = Asynchronous(HOLD, 4), chunk_of(0)
    executor.receive(executor.request(), chunk)
    chunk[:] = 55.0
    assert executor.step().action == 0


def test_executors_and_monitor_need_no_torch():
    code = (
        "import sys; import wamkit.inference.execution_loop, wamkit.inference.execution_policy;"
        "import wamkit.inference.monitor_response;"
        "assert not {'torch', 'lerobot', 'jaxtyping'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
