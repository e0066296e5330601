"""Keep acting while the policy thinks: which action of which chunk is executed at which control tick.

An executor is bookkeeping alone: no clock, thread, robot or model, and no torch. `execution_loop.ControlLoop` runs one
in real time; a benchmark can run one in simulated time. Each control tick goes

    request = executor.request()              # None: nothing to ask for now
    executor.receive(request, actions)        # whenever the answer is there, in this tick or in a later one
    step = executor.step()                    # what to execute in this tick

An action is due at a time: action i of a chunk i control periods after the chunk's observation. An action whose time
has passed is stale and never executed. While there is nothing to execute the executor holds, and then the times of all
actions wait too: where only the robot moves the world, a robot that stood still has made no action stale. Where the
world moves by itself, say ``hold_ages=True``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from wamkit.errors import WamkitError

LATENCIES_REMEMBERED = 10
"""How many past latencies the delay of real-time chunking is the greatest of (the paper's buffer Q)."""


class ExecutionError(WamkitError):
    """A chunk that cannot be executed, or an executor that is used out of order."""


@dataclass(frozen=True)
class Hold:
    """The action that leaves the robot where it is, for ticks in which there is nothing to execute."""

    neutral: tuple[float, ...]
    """In the units of the actions: zeros where actions are displacements."""
    keep: tuple[int, ...] = ()
    """Dimensions that repeat what was executed last instead: a gripper's effort, or all of them where actions are
    absolute positions (``neutral`` is then where the robot stands at the start)."""

    def __post_init__(self) -> None:
        if not self.neutral or any(not 0 <= index < len(self.neutral) for index in self.keep):
            raise ExecutionError(f"Hold keeps dimensions {self.keep} of {len(self.neutral)}: count from 0, in range.")

    def action(self, last: np.ndarray | None) -> np.ndarray:
        """The action float32 [A] after ``last`` (None: nothing was executed yet)."""
        action = np.array(self.neutral, np.float32)
        if last is not None and self.keep:
            action[list(self.keep)] = last[list(self.keep)]
        return action


@dataclass(frozen=True)
class Request:
    """A chunk that is asked for, with the observation of this tick."""

    number: int
    tick: int
    """Control tick of the observation."""
    plan_time: int
    """The tick's place on the plan: ticks so far, without those that held (unless holding ages the plan)."""
    previous: np.ndarray | None = None
    """In-painting: float32 [M, A], the planned actions from this tick on; None where there is no plan yet."""
    delay: int = 0
    """In-painting: how many of ``previous`` will have been executed when the answer comes."""


@dataclass(frozen=True)
class Step:
    """What to execute in one tick."""

    action: np.ndarray
    """float32 [A]"""
    held: bool
    """Whether there was nothing to execute."""


@dataclass
class Counts:
    """What happened since the last reset, in ticks and actions."""

    requests: int = 0
    held: int = 0
    """Ticks without a planned action."""
    stale: int = 0
    """Actions whose time had passed when their chunk came."""
    missed: int = 0
    """Ticks that the control loop itself missed."""


@dataclass(frozen=True)
class _Chunk:
    start: int
    actions: np.ndarray

    def covers(self, plan_time: int) -> bool:
        return 0 <= plan_time - self.start < len(self.actions)

    def at(self, plan_time: int) -> np.ndarray:
        return self.actions[plan_time - self.start]


class Executor(ABC):
    """Base of all executors; at most one request is under way.

    Args:
        hold: What to do without a plan.
        n_action_steps: Ticks on the plan between two requests (the paper's execution horizon s). A request waits for
            the answer to the one before.
        hold_ages: Whether actions go stale while the robot holds.
    """

    inpaints: ClassVar[bool] = False
    """Whether its requests must be answered by in-painting."""

    def __init__(self, hold: Hold, n_action_steps: int, *, hold_ages: bool = False) -> None:
        if n_action_steps < 1:
            raise ExecutionError(f"An executor executes at least one action of a chunk, not {n_action_steps}.")
        self.hold, self.n_action_steps, self.hold_ages = hold, n_action_steps, hold_ages
        self.reset()

    def reset(self) -> None:
        """Forget all plans; to be called between episodes. An answer to an earlier request is refused from now on."""
        self.tick = 0
        """Control ticks so far."""
        self.counts = Counts()
        self._plan_time = 0
        self._asked_at: int | None = None
        self._under_way: Request | None = None
        self._chunks: list[_Chunk] = []
        self._last: np.ndarray | None = None
        self._latencies: deque[int] = deque(maxlen=LATENCIES_REMEMBERED)

    @abstractmethod
    def _planned(self) -> np.ndarray | None:
        """The action that is due now."""

    def _start_of(self, request: Request) -> int:
        """The place on the plan of a chunk's first action."""
        return request.plan_time

    def _request(self, number: int) -> Request:
        return Request(number, self.tick, self._plan_time)

    def request(self) -> Request | None:
        """What to ask the policy now; None while an answer is awaited or the plan is fresh enough."""
        if self._under_way is not None:
            return None
        fresh = self._asked_at is not None and self._plan_time - self._asked_at < self.n_action_steps
        if fresh and self._planned() is not None:
            return None
        self._under_way = self._request(self.counts.requests)
        self._asked_at = self._plan_time
        self.counts.requests += 1
        return self._under_way

    def receive(self, request: Request, actions: np.ndarray) -> None:
        """The answer to a request, before the step of the tick in which it came.

        Args:
            request: From `request`, of this episode.
            actions: [K, A], the first of them due at the request's observation.

        Raises:
            ExecutionError: nobody asked, or the actions have another shape, too few rows or NaN.
        """
        if request is not self._under_way:
            raise ExecutionError("This request is not under way: an executor takes one answer to each, before a reset.")
        # A private copy: a source may write its next answer into the same memory.
        chunk = np.array(actions, np.float32)
        width = len(self.hold.neutral)
        if chunk.ndim != 2 or not len(chunk) or chunk.shape[1] != width:
            raise ExecutionError(f"A chunk is [K, {width}] with at least one row, got {list(chunk.shape)}.")
        if not np.isfinite(chunk).all():
            raise ExecutionError("The chunk holds NaN or infinity: look at the policy's last layer and statistics.")
        if self.n_action_steps > len(chunk):
            raise ExecutionError(f"Cannot execute {self.n_action_steps} actions of a chunk of {len(chunk)}.")
        self._under_way = None
        self._latencies.append(self.tick - request.tick)
        start = self._start_of(request)
        self.counts.stale += min(self._plan_time - start, len(chunk))
        self._chunks = [old for old in self._chunks if old.start + len(old.actions) > self._plan_time]
        self._chunks.append(_Chunk(start, chunk))

    def step(self) -> Step:
        """What to execute in this tick; moves on to the next."""
        planned = self._planned()
        action = self.hold.action(self._last) if planned is None else planned
        if planned is None:
            self.counts.held += 1
        self._pass(planned is not None)
        self._last = action
        return Step(action, planned is None)

    def skip(self, ticks: int) -> None:
        """Ticks in which the control loop executed nothing: what was due in them is stale."""
        for _ in range(ticks):
            self._pass(self._planned() is not None)
        self.counts.missed += ticks

    def _pass(self, planned: bool) -> None:
        self.tick += 1
        if planned or self.hold_ages:
            self._plan_time += 1

    def executed(self, action: np.ndarray) -> None:
        """What the robot really did in the last tick, where that was something else than the step said."""
        self._last = np.array(action, np.float32)

    def abandon(self) -> None:
        """No answer will come to the request under way; the next tick asks again."""
        self._under_way = self._asked_at = None

    def override(self, action: np.ndarray) -> None:
        """Somebody else acted in this tick: all plans are void, and so is the answer under way."""
        self.abandon()
        self._chunks = []
        self.tick += 1
        self.executed(action)


class Synchronous(Executor):
    """Ask, wait, execute the first ``n_action_steps`` actions, ask again. The robot holds while the policy thinks.

    Args:
        hold: What to do while waiting.
        n_action_steps: Actions executed of each chunk.
    """

    def __init__(self, hold: Hold, n_action_steps: int) -> None:
        super().__init__(hold, n_action_steps)

    def _start_of(self, request: Request) -> int:
        return self._plan_time

    def _planned(self) -> np.ndarray | None:
        chunk = self._chunks[-1] if self._chunks else None
        if chunk is None or not 0 <= self._plan_time - chunk.start < self.n_action_steps:
            return None
        return chunk.at(self._plan_time)

    def skip(self, ticks: int) -> None:
        """A loop that waits for the policy misses ticks; the chunk starts when it comes all the same."""
        self.tick += ticks
        self.counts.missed += ticks


class Asynchronous(Executor):
    """Ask ahead, go on with the old chunk meanwhile, and enter the new one at the action whose time it is."""

    def _planned(self) -> np.ndarray | None:
        if not self._chunks or not self._chunks[-1].covers(self._plan_time):
            return None
        return self._chunks[-1].at(self._plan_time)


class TemporalEnsembling(Executor):
    """Asynchronous; each action is a weighted mean of what all chunks say for its time (ACT, Zhao et al. 2023).

    The weight of the i-th oldest chunk is exp(-decay i), so that older ones count more.

    Args:
        hold: What to do without a plan.
        n_action_steps: Ticks between two requests; 1 in the paper.
        decay: m of the paper.
        hold_ages: See `Executor`.
    """

    def __init__(self, hold: Hold, n_action_steps: int = 1, *, decay: float = 0.01, hold_ages: bool = False) -> None:
        super().__init__(hold, n_action_steps, hold_ages=hold_ages)
        self.decay = decay

    def _planned(self) -> np.ndarray | None:
        said = [chunk.at(self._plan_time) for chunk in self._chunks if chunk.covers(self._plan_time)]
        if not said:
            return None
        weights = np.exp(-self.decay * np.arange(len(said)))
        return np.average(said, axis=0, weights=weights).astype(np.float32)


class RealTimeChunking(Asynchronous):
    """Asynchronous; each new chunk is in-painted onto the old one, so that both agree where they meet.

    Real-time chunking (Black, Galliker and Levine 2025, arXiv 2506.07339, Algorithm 1): the actions that will be
    executed while the policy thinks are frozen, the rest of the overlap guides the new chunk with falling weight. The
    delay is forecast as the greatest of the last ten.

    Args:
        hold: What to do without a plan.
        n_action_steps: Ticks between two requests (s_min). Above half the chunk the overlap is short.
        expected_latency: Ticks, until one was seen.
        hold_ages: See `Executor`.
    """

    inpaints = True

    def __init__(self, hold: Hold, n_action_steps: int, *, expected_latency: int = 0, hold_ages: bool = False) -> None:
        super().__init__(hold, n_action_steps, hold_ages=hold_ages)
        if expected_latency < 0:
            raise ExecutionError(f"A latency is 0 ticks or more, not {expected_latency}.")
        self.expected_latency = expected_latency

    def _request(self, number: int) -> Request:
        chunk = self._chunks[-1] if self._chunks else None
        if chunk is None or not chunk.covers(self._plan_time):
            return Request(number, self.tick, self._plan_time)
        previous = chunk.actions[self._plan_time - chunk.start :].copy()
        # The first answer finds a robot that holds; from then on latencies are those of a policy under way.
        latency = max(self._latencies, default=self.expected_latency)
        return Request(number, self.tick, self._plan_time, previous, min(latency, len(previous)))


EXECUTORS: dict[str, type[Executor]] = {
    "synchronous": Synchronous,
    "asynchronous": Asynchronous,
    "temporal_ensembling": TemporalEnsembling,
    "real_time_chunking": RealTimeChunking,
}
"""By name, for flags and tables."""
