"""What a server needs of a policy, and a wamkit policy as that."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wamkit.errors import WamkitError, suggest
from wamkit.serving.batching import Item
from wamkit.serving.logs import log
from wamkit.serving.requests import RequestFormat

if TYPE_CHECKING:
    from wamkit.data.contract_terms import BodyContract
    from wamkit.inference.monitor import Imagined
    from wamkit.inference.monitor_calibration import Calibration
    from wamkit.inference.policy import Policy
    from wamkit.serving.live import LiveImagination, Sink, View, WatchedEpisode
    from wamkit.types import ActionChunk, Future


_PROMPT_WORDS = (0, 24, 48)
"""Lengths of instructions that a warm-up tries: from none to a long sentence, in any tokenizer."""


class Served(Protocol):
    """A policy as the server sees it. Only `act` runs on the inference thread; the rest must be quick."""

    @property
    def request_format(self) -> RequestFormat:
        """The observation that it takes."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What a client is told of it, beside the observation: at least ``action``, ``rate_hz`` and ``chunk``."""
        ...

    def violations(self, observation: Mapping[str, Any], robot: Mapping[str, Any]) -> list[str]:
        """Where a session's first observation, and what its client says of the robot, break the policy's contract."""
        ...

    def remember(self) -> Any:
        """A new session's memory, passed back with each of its items; None for a policy without one.

        `act` may change it, and only once it has the item's actions: a batch that failed is run again one by one.
        """
        ...

    def act(self, items: Sequence[Item]) -> Sequence[np.ndarray]:
        """Physical actions, float [K, A] for each item; what is sampled depends on the item's seed alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class RobotDescription:
    """A robot as `wamkit.data.contract.check` compares it: what the client says, else what the policy was trained on.

    The client's words are the request's ``robot``: ``embodiment``, ``rate_hz``, ``state_names``, ``action_names``,
    ``action_low`` and ``action_high``, each optional.
    """

    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    rate_hz: float
    embodiment: str

    @classmethod
    def of(
        cls, robot: Mapping[str, Any], body: BodyContract, cameras: Mapping[str, tuple[int, int]]
    ) -> RobotDescription:
        """The description of a client's robot.

        Raises:
            WamkitError: ``robot`` holds an unknown word, or a value of another type.
        """
        known: dict[str, Any] = {
            "embodiment": body.embodiment,
            "rate_hz": body.rate_hz,
            "state_names": body.state.names if body.state else (),
            "action_names": body.action.names if body.action else (),
            "action_low": (),
            "action_high": (),
        }
        for word, value in robot.items():
            if word not in known:
                raise WamkitError(f"'robot' has no {str(word)[:40]!r}.{suggest(str(word)[:40], known)}")
            known[word] = _word(word, value)
        if len(known["action_low"]) != len(known["action_high"]):
            raise WamkitError("'robot' must give action_low and action_high, one number for each dimension.")
        return cls(cameras=cameras, **known)


@dataclass
class SessionMemory:
    """What is kept of one episode of one session."""

    held: Any = None
    """By the model: its row of `wamkit.models.base.WorldActionModel.remember`; None where an episode begins."""
    watched: WatchedEpisode | None = None
    """What the live page shows of it."""


class ServedPolicy:
    """A `wamkit.inference.policy.Policy` for the server: one embodiment, physical units, a seed for each sample.

    Args:
        policy: Loaded from a checkpoint. Anything with its ``act``, ``body``, ``cameras`` and ``contract`` will do.
        embodiment: Which robot, where the policy was trained on several.
        facts: More to tell clients, such as the checkpoint's hash.

    Raises:
        PolicyError: The policy was not trained on that embodiment, or on several and none is named.
        WamkitError: It was trained without actions.
    """

    def __init__(
        self, policy: Policy, *, embodiment: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        from wamkit.data.contract import check  # imports a data set's whole stack: now, not at the first request

        self._policy, self._facts, self._compare = policy, dict(facts or {}), check
        self._remembers = policy.model.capabilities.remembers
        self._picture_interval_s = policy.model.picture_interval_s if self._remembers else None
        self._body = policy.body(embodiment)
        if self._body.action is None:
            raise WamkitError("this policy was trained without actions, so it cannot act: train its policy stage.")
        self._action = self._body.action
        sizes = {camera.name: camera.size for camera in self._body.cameras}
        sizes = dict(policy.contract.cameras) | sizes
        self._format = RequestFormat(
            cameras={camera: (sizes[camera][0], sizes[camera][1]) for camera in policy.cameras},
            state_names=self._body.state.names if self._body.state is not None else (),
            action_dim=len(self._action.names),
            inpaints=policy.model.capabilities.inpaints_actions,
            pictures=self._most_pictures(),
        )
        self.live: LiveImagination | None = None
        # The first run is slow and says how long a chunk is; no client should wait for it.
        (self._chunk,) = self.act([Item(observation=self._blank(), seed=0)])

    @property
    def request_format(self) -> RequestFormat:
        """The observation that it takes."""
        return self._format

    def metadata(self) -> dict[str, Any]:
        """See `Served`."""
        body, action = self._body, self._action
        length = len(self._chunk)
        ranges = {"q01": list(action.low), "q99": list(action.high)}
        if action.bounds is not None:
            ranges |= {"low": [low for low, _ in action.bounds], "high": [high for _, high in action.bounds]}
        return {
            "model": self._policy.model.name,
            "embodiment": body.embodiment,
            "action": {
                "shape": list(self._chunk.shape),
                "dtype": "float32",
                "names": list(action.names),
                "normalised": False,
                **ranges,
            },
            "rate_hz": body.rate_hz,
            "takes": [word for word, taken in self._takes().items() if taken],
            "picture_interval_s": self._picture_interval_s,
            "look_interval_s": self._policy.model.look_interval_s if self._remembers else None,
            "chunk": {"length": length, "seconds": length / body.rate_hz, "inpaints": self._format.inpaints},
        } | self._facts

    def _takes(self) -> dict[str, bool]:
        """Words beside the observation that not every policy makes use of."""
        pictures = self._picture_interval_s is not None
        return {"executed": self._remembers, "observed": pictures, "timestamp": self.live is not None}

    def _most_pictures(self) -> int:
        """Of four chunks' time: a robot that was silent for longer begins anew."""
        if self._picture_interval_s is None:
            return 0
        return max(1, round(4 * (self._policy.contract.horizon_s or 1.0) / self._picture_interval_s))

    def violations(self, observation: Mapping[str, Any], robot: Mapping[str, Any]) -> list[str]:
        """See `Served`; one picture of each camera is enough to see that it hangs upside down."""
        pictures = {camera: observation[f"observation.images.{camera}"][None] for camera in self._format.cameras}
        described = RobotDescription.of(robot, self._body, self._format.cameras)
        acted_as = replace(self._policy.contract, bodies=(self._body,))
        found = [str(violation) for violation in self._compare(acted_as, described, pictures)]
        try:
            self._policy.model.check_instructions([observation["task"]])
        except WamkitError as error:
            found.append(f"instruction: {error}")
        return found

    def warm_up(self, max_batch: int) -> int:
        """Run what requests may ask of a policy with a runtime, which prepares each shape at its first use.

        Args:
            max_batch: Most requests of a batch.

        Returns:
            How many shapes were prepared; 0 for a policy without a runtime, which has none to prepare.
        """
        from wamkit.encoders.byte_text import InstructionTooLong

        runtime = self._policy.runtime
        if runtime is None:
            return 0
        for size in sorted({min(size, max_batch) for size in runtime.settings.batch_sizes}):
            if self._remembers:
                # An episode grows into shapes that a first observation has not.
                blank = self._policy.observation([self._blank()] * size, embodiment=self._body.embodiment)
                runtime.warm_up([blank])
            for words in _PROMPT_WORDS:
                try:
                    self.act([Item(observation=self._blank("a " * words), seed=0)] * size)
                except InstructionTooLong:
                    break
        return len(runtime.reports())

    def remember(self) -> SessionMemory:
        """See `Served`; a new session's, or a new episode's."""
        return SessionMemory(watched=None if self.live is None else self.live.episode())

    def watch(self, calibration: Calibration | None = None, sinks: Sequence[Sink] = ()) -> LiveImagination:
        """Compare imagined with observed from now on, at each request, for the live page.

        Raises:
            MonitorError: The policy imagines nothing, or the calibration is of another one.
        """
        from wamkit.inference.monitor import PolicyImagination
        from wamkit.serving.live import LiveImagination

        PolicyImagination(self._policy)  # refuses a model that imagines nothing
        self._policy.reset()
        view = view_of(self._policy, self._policy.imagine(self._blank(), embodiment=self._body.embodiment))
        self.live = LiveImagination(view, calibration, show=self._policy.picture, sinks=sinks)
        return self.live

    def act(self, items: Sequence[Item]) -> list[np.ndarray]:
        """See `Served`; each session of a model that remembers goes on from its own past, whoever shares its batch."""
        pasts = [self._past(item) for item in items] if self._remembers else None
        actions, imagined = self._together(items, pasts)
        if pasts is not None:
            # Only now: had one failed, all would be asked again, from the past that they came with.
            for item, held in zip(items, pasts, strict=True):
                if item.memory is not None:
                    item.memory.held = held
        self._look(items, imagined)
        return actions

    def _past(self, item: Item) -> Any:
        """What the model remembers of a session's episode, up to now; None where the episode begins."""
        held = None if item.memory is None else item.memory.held
        if held is None or (item.executed is None and not item.observed):
            return held
        self._policy.recall((held,))
        if item.executed is not None:
            self._policy.executed(item.executed, embodiment=self._body.embodiment)
        if item.observed:
            self._policy.observed(item.observed)
        (held,) = self._policy.remember()
        return held

    def _look(self, items: Sequence[Item], imagined: Sequence[Imagined | None]) -> None:
        """Show the live page what was imagined; whatever goes wrong in it, the robot gets its actions."""
        for item, future in zip(items, imagined, strict=True):
            watched = None if item.memory is None else item.memory.watched
            if watched is None or future is None:
                continue
            picture = item.observation[f"observation.images.{self._policy.cameras[0]}"]
            try:
                watched.look(item.at, item.observation["task"], picture, future)
            except Exception as error:
                log("monitor_failed", level=logging.ERROR, exception=error, episode=watched.number)

    def _together(
        self, items: Sequence[Item], pasts: list[Any] | None
    ) -> tuple[list[np.ndarray], list[Imagined | None]]:
        """One batch, and what was imagined where the live page shows it; plans to go on from make a batch apart.

        ``pasts``, of a model that remembers, move on to the present.
        """
        actions: dict[int, np.ndarray] = {}
        imagined: list[Imagined | None] = [None] * len(items)
        for goes_on in (False, True):
            chosen = [index for index, item in enumerate(items) if (item.previous is not None) is goes_on]
            if not chosen:
                continue
            observations = [items[index].observation for index in chosen]
            options: dict[str, Any] = {
                "embodiment": self._body.embodiment,
                "seeds": [items[index].seed for index in chosen],
            }
            if pasts is not None:
                self._policy.recall(tuple(pasts[index] for index in chosen))
            if goes_on:
                plans, delays = [items[i].previous for i in chosen], [items[i].delay for i in chosen]
                chunk = self._policy.inpaint(observations, plans, delays, **options)
            else:
                chunk = self._policy.act(observations, **options)
            for index, row, valid in zip(chosen, chunk.actions, chunk.valid, strict=True):
                actions[index] = row[valid].numpy()
            if pasts is not None:
                for index, held in zip(chosen, self._policy.remember(), strict=True):
                    pasts[index] = held
            if any(items[index].memory is not None and items[index].memory.watched for index in chosen):
                for index, future in zip(chosen, self._imagined(observations, chunk), strict=True):
                    imagined[index] = future
        return [actions[index] for index in range(len(items))], imagined

    def _imagined(self, observations: list[dict[str, Any]], chunk: ActionChunk) -> Sequence[Imagined | None]:
        """What came with the chunk; where acting computes no future, from a pass of its own."""
        from wamkit.inference.monitor import imagined_with

        try:
            return imagined_with(self._policy, chunk, observations, embodiment=self._body.embodiment)
        except Exception as error:
            log("monitor_failed", level=logging.ERROR, exception=error)
            return [None] * len(observations)

    def _blank(self, task: str = "") -> dict[str, Any]:
        blank: dict[str, Any] = {
            f"observation.images.{camera}": np.zeros((*size, 3), np.uint8)
            for camera, size in self._format.cameras.items()
        }
        if self._body.state is not None:
            blank["observation.state"] = np.asarray(self._body.state.mean, np.float32)
        return blank | {"task": task}


def view_of(policy: Policy, future: Future) -> View:
    """How the page lays a policy's space over its primary camera's picture."""
    from wamkit.serving.live import View

    grid: tuple[int, int] | None = None
    if future.space == "features":
        rows, columns = getattr(getattr(policy.model, "vision_encoder", None), "grid", (0, 0))
        grid = (rows, columns) if rows * columns == future.present.shape[1] else None
    return View(space=future.space, grid=grid, horizons_s=tuple(future.times[0].tolist()))


def _word(word: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if word == "embodiment":
        fits = isinstance(value, str)
    elif word == "rate_hz":
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    else:
        kind = str if word.endswith("names") else int | float
        fits = isinstance(value, list | tuple) and len(value) <= 4096 and all(isinstance(item, kind) for item in value)
        value = tuple(value) if fits else value
    if not fits:
        raise WamkitError(f"'robot' says {word}={str(value)[:60]!r}, which is none.")
    return value
