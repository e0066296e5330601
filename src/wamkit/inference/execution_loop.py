"""Executors in real time: a loop that is called once a control period and never waits for the policy unless told to.

loop = ControlLoop(source, RealTimeChunking(hold, 8), rate_hz=80.0)
while running:
    robot.send(loop.act(robot.observe, at=time.monotonic() - started))

A *source* is anything that is called with an observation (LeRobot's keys) and returns a chunk [K, A] in physical units
at the loop's rate: a local policy (`execution_policy.policy_source`), a remote client, a function. It may have more:

- ``inpaint(observation, previous, delay)``: a chunk that goes on from ``previous`` [M, A] (its first row is due at the
  observation), the first ``delay`` rows of which will be executed before the answer comes;
- ``executed(actions)``: told, before each chunk is asked for, what was executed since the one before, [n, A]: what a
  causal model feeds its cache with. What was planned and not executed never reaches it;
- ``picture_interval_s`` and ``observed(observations)``: a model that must see more pictures than it acts on says how
  far apart, and is shown, before each chunk is asked for, those since the one before, oldest first;
- ``look_interval_s``: it is asked again only after a whole number of these, for models that know whole frames alone;
- ``reset()``: a new episode begins.

No torch is needed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from wamkit.inference.execution import ExecutionError, Executor, Request

Observation = Mapping[str, Any]
ChunkSource = Callable[[Observation], np.ndarray]


@runtime_checkable
class InpaintingSource(Protocol):
    """A source that can continue a plan."""

    def __call__(self, observation: Observation) -> np.ndarray:
        """A chunk [K, A]."""
        ...

    def inpaint(self, observation: Observation, previous: np.ndarray, delay: int) -> np.ndarray:
        """A chunk [K, A] that goes on from ``previous`` [M, A], of which the first ``delay`` rows stay as they are."""
        ...


class Thinking(ABC):
    """Where the source is called, and when its answer is there."""

    @abstractmethod
    def begin(self, job: Callable[[], np.ndarray]) -> None:
        """Start a call; the one before has been taken."""

    @abstractmethod
    def finished(self) -> np.ndarray | None:
        """The answer, once; None while there is none. What the call raised is raised here."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the answer under way, or the one not yet taken."""

    def close(self) -> None:
        """End, after what is under way; here there is nothing to end."""
        self.forget()


class Blocking(Thinking):
    """In the caller's thread: the control loop stands still meanwhile."""

    def __init__(self) -> None:
        self._answer: np.ndarray | None = None

    def begin(self, job: Callable[[], np.ndarray]) -> None:
        """Calls at once."""
        self._answer = job()

    def finished(self) -> np.ndarray | None:
        """The answer of `begin`."""
        answer, self._answer = self._answer, None
        return answer

    def forget(self) -> None:
        """Drops the answer."""
        self._answer = None


class Background(Thinking):
    """In a thread of its own: the control loop goes on."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wamkit-thinking")
        self._call: Future[np.ndarray] | None = None

    def begin(self, job: Callable[[], np.ndarray]) -> None:
        """Hands the call to the thread; one that a reset has left behind runs to its end first and is forgotten."""
        self._call = self._thread.submit(job)

    def finished(self) -> np.ndarray | None:
        """The answer if it is there."""
        if self._call is None or not self._call.done():
            return None
        call, self._call = self._call, None
        return call.result()

    def forget(self) -> None:
        """Drops the answer; the call itself runs to its end."""
        self._call = None

    def close(self) -> None:
        """Waits for the call under way, if any."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class ControlLoop:
    """One episode after another of a robot under an executor.

    Args:
        source: Gives chunks, see the module's docstring.
        executor: Decides when to ask and what to execute.
        rate_hz: Control rate, which is also the rate of the chunks' actions.
        thinking: Default `Background`: `act` never waits. With `Blocking` and `Synchronous` it waits for each chunk.

    Raises:
        ExecutionError: the executor in-paints and the source cannot, or it asks between two moments at which the
            source may be asked.
    """

    def __init__(
        self,
        source: ChunkSource | InpaintingSource,
        executor: Executor,
        *,
        rate_hz: float,
        thinking: Thinking | None = None,
    ) -> None:
        if executor.inpaints and not isinstance(source, InpaintingSource):
            raise ExecutionError(
                f"{type(executor).__name__} needs a source with inpaint(observation, previous, delay), which "
                f"{type(source).__name__} has not: use Asynchronous, or a model whose capabilities say "
                "inpaints_actions."
            )
        if rate_hz <= 0:
            raise ExecutionError(f"A control rate is above 0 Hz, not {rate_hz:g}.")
        self.source, self.executor, self.rate_hz = source, executor, rate_hz
        self.thinking = thinking or Background()
        self._picture_every = _periods(source, "picture_interval_s", "must see a picture", rate_hz)
        self._look_every = _periods(source, "look_interval_s", "may be asked", rate_hz)
        if self._look_every is not None and executor.n_action_steps % self._look_every:
            raise ExecutionError(
                f"The policy may be asked every {self._look_every} actions and the executor asks after "
                f"{executor.n_action_steps}: set n_action_steps to a multiple of {self._look_every}."
            )
        self._resets = False
        self._begin_episode()

    def _begin_episode(self) -> None:
        self._request: Request | None = None
        self._since = _Since()
        self._handed_over: _Since | None = None

    def reset(self) -> None:
        """A new episode begins: time starts at 0, no plan and no answer of the old one survives."""
        self.executor.reset()
        self.thinking.forget()
        self._begin_episode()
        self._resets = True

    def act(self, observation: Observation | Callable[[], Observation], at: float | None = None) -> np.ndarray:
        """The action of this control period, float32 [A] in physical units.

        Args:
            observation: What is seen now, or a function that looks; it is called only where a chunk is asked for, or
                where the source must see a picture.
            at: Seconds since the episode's start; periods that were missed make their actions stale. None: no period
                is ever missed.

        Raises:
            ExecutionError: time runs backwards, or the source gave something that is no chunk.
            Exception: what the source raised. The plan goes on, and the next `act` asks again.
        """
        self._keep_time(at)
        try:
            self._collect()
            # An answer that came late, or a robot that held, may have moved the executor's moment off the source's.
            request = self.executor.request() if self._since.on(self._look_every) else None
            if request is not None:
                self._begin(request, observation() if callable(observation) else observation)
                self._collect()
            elif self._since.due(self._picture_every):
                self._since.seen.append(observation() if callable(observation) else observation)
        except BaseException:
            self._abandon()
            raise
        step = self.executor.step()
        self._since.executed.append(step.action)
        return step.action

    def executed(self, action: np.ndarray) -> None:
        """What the robot really did with the last action, where a safety layer or an operator changed it."""
        if not self._since.executed:
            raise ExecutionError("Nothing was executed yet: call act first.")
        self._since.executed[-1] = np.array(action, np.float32)
        self.executor.executed(action)

    def override(self, action: np.ndarray, at: float | None = None) -> None:
        """Somebody else acted in this control period instead of `act`: an operator, a fallback, a safety stop.

        The source is told of it like of any executed action; the plan is void, and the next `act` asks for a new one.

        Args:
            action: What was executed, [A].
            at: See `act`.
        """
        self._keep_time(at)
        self.thinking.forget()
        self._request = None
        self._since.executed.append(np.array(action, np.float32))
        if self._picture_every is not None:
            # Nobody looked meanwhile: for a model that must see every moment, an episode begins when it is asked again.
            self._since, self._resets = _Since(), True
        self.executor.override(action)

    def close(self) -> None:
        """Wait for the source and end its thread."""
        self.thinking.close()

    def __enter__(self) -> ControlLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_time(self, at: float | None) -> None:
        if at is None:
            return
        # Rounded: a loop that wakes a little late is in the period that it woke for.
        behind = round(at * self.rate_hz) - self.executor.tick
        if behind > 0:
            self.executor.skip(behind)
        elif behind < -1:
            raise ExecutionError(
                f"act was called for {at:.3f} s after {self.executor.tick / self.rate_hz:.3f} s had been executed: "
                "call reset at the start of an episode, and act once a period."
            )

    def _collect(self) -> None:
        if self._request is None:
            return
        actions = self.thinking.finished()
        if actions is not None:
            request, self._request = self._request, None
            self.executor.receive(request, actions)

    def _abandon(self) -> None:
        self.thinking.forget()
        self.executor.abandon()
        self._request = None
        if self._handed_over is not None:  # the source failed before it heard what was executed
            self._since, self._handed_over = self._handed_over.and_then(self._since), None

    def _begin(self, request: Request, observation: Observation) -> None:
        source, since, resets = self.source, self._since, self._resets
        self._request, self._since, self._resets = request, _Since(asked=True), False
        self._handed_over = since

        def job() -> np.ndarray:
            # In the source's own thread, in order: it is never called twice at once.
            if resets and callable(reset := getattr(source, "reset", None)):
                reset()
            # What was done before an episode's first look follows on nothing that was seen.
            if since.executed and not resets and callable(tell := getattr(source, "executed", None)):
                tell(np.stack(since.executed))
            if since.seen and not resets and callable(show := getattr(source, "observed", None)):
                show(since.seen)
            self._handed_over = None
            if request.previous is not None and isinstance(source, InpaintingSource):
                return source.inpaint(observation, request.previous, request.delay)
            return source(observation)

        self.thinking.begin(job)


@dataclass
class _Since:
    """What happened since a chunk was last asked for."""

    asked: bool = False
    """Whether one was, in this episode."""
    executed: list[np.ndarray] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)

    def due(self, every: int | None) -> bool:
        """Whether the source must see this moment: a whole number of picture intervals, in actions, after the last."""
        return every is not None and self.asked and bool(self.executed) and len(self.executed) % every == 0

    def on(self, every: int | None) -> bool:
        """Whether a source that is asked every so many actions may be asked now; at first it may at any time."""
        return every is None or not self.asked or len(self.executed) % every == 0

    def and_then(self, later: _Since) -> _Since:
        """Both, where the source heard of neither."""
        return _Since(self.asked, [*self.executed, *later.executed], [*self.seen, *later.seen])


def _periods(source: object, name: str, what: str, rate_hz: float) -> int | None:
    """How many control periods an interval of a source has; None where it names none.

    Raises:
        ExecutionError: They are no whole number.
    """
    interval = getattr(source, name, None)
    if interval is None:
        return None
    periods = round(interval * rate_hz)
    if periods < 1 or abs(interval * rate_hz - periods) > 1e-3:
        raise ExecutionError(
            f"The policy {what} every {interval:g} s, which is no whole number of periods at {rate_hz:g} "
            f"Hz: control it at a multiple of {1 / interval:g} Hz."
        )
    return periods
