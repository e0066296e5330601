"""The inference thread: it gathers what waits, and one bad item costs nobody else an answer."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from wamkit.serving.batching import Batcher, InferenceError, Item


def item(number: float) -> Item:
    return Item(observation={"x": number}, seed=0)


class Gate:
    """A policy that waits to be let through, and doubles."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[float]] = []

    def __call__(self, items):
        numbers = [each.observation["x"] for each in items]
        self.batches.append(numbers)
        self.entered.set()
        assert self.open.wait(10)
        if -1.0 in numbers:
            raise ZeroDivisionError
        return [np.full((2, 1), np.nan if number == -2.0 else 2 * number) for number in numbers]


@pytest.fixture
def gate():
    return Gate()


def test_what_gathers_while_a_batch_runs_goes_together(gate):
    batcher = Batcher(gate, max_batch=4)
    first = batcher.submit(item(0))
    assert gate.entered.wait(10)
    others = [batcher.submit(item(number)) for number in range(1, 7)]
    gate.open.set()
    assert [future.result(10).actions[0, 0] for future in (first, *others)] == [0, 2, 4, 6, 8, 10, 12]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert first.result().batch == 1
    assert others[0].result().batch == 4
    batcher.close(10)
    assert not batcher.alive


def test_the_first_of_a_batch_can_wait_for_others(gate):
    gate.open.set()
    batcher = Batcher(gate, max_batch=2, wait_s=10.0)
    futures = [batcher.submit(item(number)) for number in (1, 2)]
    assert [future.result(5).batch for future in futures] == [2, 2]
    batcher.close(10)


def test_one_bad_item_costs_the_others_nothing(gate):
    batcher = Batcher(gate, max_batch=8)
    first = batcher.submit(item(0))
    assert gate.entered.wait(10)
    good, bad, nan = (batcher.submit(item(number)) for number in (3.0, -1.0, -2.0))
    gate.open.set()
    assert first.result(10).actions.tolist() == [[0], [0]]
    assert good.result(10).actions.tolist() == [[6], [6]]
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    with pytest.raises(InferenceError, match="not finite"):
        nan.result(10)
    assert batcher.submit(item(5)).result(10).actions[0, 0] == 10
    batcher.close(10)


def test_closing_answers_what_waits(gate):
    batcher = Batcher(gate, max_batch=1)
    futures = [batcher.submit(item(number)) for number in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.open.set()
    closing.join(10)
    assert [future.result(0).actions[0, 0] for future in futures] == [0, 2, 4]


def test_nobody_runs_what_was_cancelled(gate):
    batcher = Batcher(gate, max_batch=4)
    batcher.submit(item(0))
    assert gate.entered.wait(10)
    gone, stays = batcher.submit(item(1)), batcher.submit(item(2))
    gone.cancel()
    gate.open.set()
    assert stays.result(10).batch == 1
    batcher.close(10)
    assert gate.batches == [[0], [2]]


def test_actions_of_another_shape_are_no_actions():
    batcher = Batcher(lambda items: [np.zeros(3) for _ in items], max_batch=1)
    with pytest.raises(InferenceError, match=r"the policy gave \[\[3\]\] for 1 observations"):
        batcher.submit(item(0)).result(10)
    batcher.close(10)
    with pytest.raises(InferenceError, match="at least 1 request"):
        Batcher(lambda items: [], max_batch=0)
