"""One thread that runs the policy: what waits when it is free goes together.

No request is held back to fill a batch unless asked: while a batch runs others gather, so batches grow with the load
and an idle server answers at once. A policy is run by this thread alone, so it needs no locks and a CUDA graph sees one
stream.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wamkit.errors import WamkitError


class InferenceError(WamkitError):
    """The policy gave no usable actions for a request."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One observation to act on."""

    observation: dict[str, Any]
    seed: int
    memory: Any = None
    """What the policy remembers of this session; see `wamkit.serving.served.Served.remember`."""
    previous: np.ndarray | None = None
    """In-painting: the plan to go on from, float32 [M, A]."""
    delay: int = 0
    """In-painting: how many of its rows stay as they are."""
    executed: np.ndarray | None = None
    """What the session's robot executed since the item before, float32 [n, A]."""
    observed: Sequence[dict[str, np.ndarray]] = ()
    """What it saw since, oldest first: ``observation.images.*``."""
    at: float = 0.0
    """Seconds since the session's episode began."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Actions, and what they took."""

    actions: np.ndarray
    """float32 [K, A]."""
    queue_s: float
    infer_s: float
    batch: int


@dataclass
class _Waiting:
    item: Item
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Gathers requests of all sessions into batches and runs them.

    Args:
        act: Items -> one float array [K, A] for each, in order.
        max_batch: Most items of a batch.
        wait_s: How long the first of a batch waits for others; 0 takes only what is there.
    """

    def __init__(
        self, act: Callable[[Sequence[Item]], Sequence[np.ndarray]], *, max_batch: int, wait_s: float = 0.0
    ) -> None:
        if max_batch < 1 or wait_s < 0:
            raise InferenceError(f"a batch holds at least 1 request and waits at least 0 s, not {max_batch}, {wait_s}.")
        self._act, self._max_batch, self._wait_s = act, max_batch, wait_s
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wamkit-inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, item: Item) -> Future[Answer]:
        """Put an item into the queue; its future raises what the policy raised for this item alone."""
        waiting = _Waiting(item)
        self._queue.put(waiting)
        return waiting.future

    def close(self, timeout_s: float | None = None) -> None:
        """Answer what is in the queue, then end the thread."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            if batch:
                self._answer(batch)

    def _gather(self) -> tuple[list[_Waiting], bool]:
        """The next batch, and whether another may come."""
        first = self._queue.get()
        if first is None:
            return [], False
        batch, until = [first], time.perf_counter() + self._wait_s
        while len(batch) < self._max_batch:
            try:
                left = until - time.perf_counter()
                following = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, False
            batch.append(following)
        return batch, True

    def _answer(self, batch: list[_Waiting]) -> None:
        # A session that has gone has cancelled its future: nobody waits for that.
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            chunks = self._checked([waiting.item for waiting in batch])
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # One bad item must not cost the others their answer: find it by running each alone.
            for waiting in batch:
                self._answer_one(waiting)
            return
        infer_s = time.perf_counter() - started
        for waiting, actions in zip(batch, chunks, strict=True):
            self._deliver(waiting, actions, started, infer_s, len(batch))

    def _answer_one(self, waiting: _Waiting) -> None:
        started = time.perf_counter()
        try:
            (actions,) = self._checked([waiting.item])
        except BaseException as error:
            waiting.future.set_exception(error)
        else:
            self._deliver(waiting, actions, started, time.perf_counter() - started, 1)

    def _checked(self, items: list[Item]) -> list[np.ndarray]:
        chunks = [np.asarray(actions, np.float32) for actions in self._act(items)]
        if len(chunks) != len(items) or any(actions.ndim != 2 for actions in chunks):
            shapes = [list(actions.shape) for actions in chunks]
            raise InferenceError(f"the policy gave {shapes} for {len(items)} observations, not [K, A] for each.")
        return chunks

    @staticmethod
    def _deliver(waiting: _Waiting, actions: np.ndarray, started: float, infer_s: float, batch: int) -> None:
        if not np.isfinite(actions).all():
            # A robot must never be sent NaN; the observation was checked, so the fault is the policy's.
            waiting.future.set_exception(InferenceError("the policy's actions are not finite for this observation."))
            return
        queue_s = started - waiting.since
        waiting.future.set_result(Answer(actions=actions, queue_s=queue_s, infer_s=infer_s, batch=batch))
