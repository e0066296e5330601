"""Simulator processes of an evaluation: each owns environments, and is killed and replaced where it hangs or dies.

The main process and a worker talk through a pipe; pictures go through memory that both have mapped. A worker serves
its messages one after another, so an environment is always in one of two states: simulating, or waiting for a chunk.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.envs.base import Environment, EnvSpec, Split, trial_seed
from wamkit.envs.registry import make_env
from wamkit.envs.worker_process import prepare_worker
from wamkit.errors import WamkitError
from wamkit.evaluation.arms import ActorArm
from wamkit.evaluation.episode_video import EpisodeVideo, VideoSettings

_PATH_RATE_HZ = 5.0


@dataclass(frozen=True)
class EnvFactory:
    """Makes the environment of a task, in any process.

    Args:
        env_type: Such as ``"metaworld"``.
        options: Keyword arguments of :func:`wamkit.envs.registry.make_env`.
    """

    env_type: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, task: str) -> Environment:
        """The environment."""
        return make_env(self.env_type, task, **self.options)


@dataclass(frozen=True, kw_only=True)
class Job:
    """An episode, as a worker is told to run it."""

    task: str
    trial: int
    split: Split
    seed: int
    actor: ActorArm | None
    """None where the actions come from the main process."""
    images: bool
    """Whether the observations sent to the main process have pictures."""
    video: tuple[Path, VideoSettings] | None
    keep_success: bool = True
    """Whether the video of a success is kept."""
    look_every: int | None = None
    """Actions between the pictures that a policy with a memory sees while a chunk is executed; None: none."""


@dataclass
class _Running:
    """An episode under way in a worker."""

    job: Job
    env: Environment
    video: EpisodeVideo | None
    started: float
    steps: int = 0
    path: list[list[float]] = field(default_factory=list)


class _Worker:
    """The worker's side: episodes by slot, and environments kept by task for the next episode."""

    def __init__(
        self,
        make: Callable[[str], Environment],
        pipe: Connection,
        pictures: Sequence[Mapping[str, np.ndarray]],
        slots: int,
    ) -> None:
        self.make, self.pipe, self.pictures, self.keep = make, pipe, pictures, 2 * slots
        self.running: dict[int, _Running] = {}
        self.free: list[tuple[str, Environment]] = []

    def start(self, slot: int, job: Job) -> None:
        env = self._environment(job.task)
        video = EpisodeVideo(*job.video) if job.video is not None else None
        running = self.running[slot] = _Running(job, env, video, time.perf_counter())
        env.reset_trial(job.trial, split=job.split, render=False)
        if running.video is not None:
            running.video.look(env, 0, last=False)
        self._trace(running)
        if job.actor is None:
            self._observe(slot)
            return
        rng = np.random.default_rng(trial_seed("actor", job.actor.name, job.seed, job.task, job.trial))
        ended = False
        while not ended:
            ended = self._step(slot, job.actor.act(env, rng))

    def execute(self, slot: int, chunk: np.ndarray) -> None:
        running, seen = self.running[slot], []
        every = running.job.look_every
        for done, action in enumerate(chunk, 1):
            if self._step(slot, action):
                return
            if every is not None and done % every == 0 and done < len(chunk):
                seen.append(running.env.observe(images=running.job.images))
        self._observe(slot, seen)

    def _step(self, slot: int, action: np.ndarray) -> bool:
        """One step; True where it ended the episode, which is then reported."""
        running = self.running[slot]
        _, success, truncated = running.env.step_action(action, render=False)
        running.steps += 1
        ended = success or truncated
        self._trace(running)
        if running.video is not None:
            running.video.look(running.env, running.steps, last=ended)
        if not ended:
            return False
        result: dict[str, Any] = {"success": success, "steps": running.steps}
        if running.job.actor is None:
            result["path"] = running.path
        if notes := running.env.description.notes:
            result["notes"] = list(notes)
        result["filmed"] = running.video is not None and (running.job.keep_success or not success)
        if running.video is not None and result["filmed"]:
            running.video.save(running.env.description.rate_hz)
        result["seconds"] = round(time.perf_counter() - running.started, 3)
        del self.running[slot]
        self.free.append((running.job.task, running.env))
        while len(self.free) > self.keep:
            self.free.pop(0)[1].close()
        self.pipe.send(("done", slot, result))
        return True

    def _observe(self, slot: int, seen: Sequence[dict[str, Any]] = ()) -> None:
        """Send what is seen now, and what was seen on the way here."""
        running = self.running[slot]
        observation = running.env.observe(images=running.job.images)
        if running.job.images:
            for camera, buffer in self.pictures[slot].items():
                buffer[...] = observation.pop(f"observation.images.{camera}")
        self.pipe.send(("observation", slot, observation | ({"observed": list(seen)} if seen else {})))

    def _trace(self, running: _Running) -> None:
        every = max(1, round(running.env.description.rate_hz / _PATH_RATE_HZ))
        if running.job.actor is None and running.steps % every == 0:
            state = running.env.observe(images=False)["observation.state"]
            running.path.append([round(float(value), 3) for value in state])

    def _environment(self, task: str) -> Environment:
        for position, (name, _) in enumerate(self.free):
            if name == task:
                return self.free.pop(position)[1]
        return self.make(task)


def _serve(make: Callable, pipe: Connection, memory: Any, cameras: Mapping, slots: int, current: Any) -> None:
    """The worker's life: one message after another until told to stop."""
    prepare_worker()
    worker = _Worker(make, pipe, picture_views(memory, cameras, slots), slots)
    pipe.send(("ready", -1, None))
    while True:
        kind, slot, content = pipe.recv()
        if kind == "stop":
            break
        current.value = slot
        try:
            if kind == "start":
                worker.start(slot, content)
            else:
                worker.execute(slot, content)
        except WamkitError as error:
            pipe.send(("refused", slot, str(error)))
        except Exception:
            pipe.send(("crashed", slot, traceback.format_exc()))
            break
        current.value = -1
    for _, env in worker.free:
        env.close()


def picture_views(memory: Any, cameras: Mapping[str, tuple[int, int]], slots: int) -> list[dict[str, np.ndarray]]:
    """The shared memory as uint8 [H, W, 3] arrays, by slot and camera."""
    flat, offset, views = np.frombuffer(memory, np.uint8), 0, []
    for _ in range(slots):
        of_slot = {}
        for camera, (height, width) in cameras.items():
            of_slot[camera] = flat[offset : offset + height * width * 3].reshape(height, width, 3)
            offset += height * width * 3
        views.append(of_slot)
    return views


class WorkerProcess:
    """The main process's side of one worker.

    Args:
        make: Makes a task's environment; sent to the worker by pickle.
        spec: Of the environments; its cameras size the shared memory.
        slots: Episodes that the worker runs side by side.
        timeout_s: A worker that has work and says nothing for so long is hung.
        startup_s: The same until its first word.
    """

    def __init__(
        self, make: Callable[[str], Environment], spec: EnvSpec, slots: int, timeout_s: float, startup_s: float
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._make, self._cameras, self.slots = make, dict(spec.cameras), slots
        self._timeout_s, self._startup_s = timeout_s, startup_s
        bytes_a_slot = sum(height * width * 3 for height, width in self._cameras.values())
        self._memory = self._context.RawArray("B", max(1, slots * bytes_a_slot))
        self.pictures = picture_views(self._memory, self._cameras, slots)
        self.jobs: dict[int, Any] = {}
        """Slot -> what the main process runs there."""
        self.start()

    def start(self) -> None:
        """Start the process; all slots are free."""
        self.jobs.clear()
        self.pipe, theirs = self._context.Pipe()
        self._current = self._context.RawValue("i", -1)
        arguments = (self._make, theirs, self._memory, self._cameras, self.slots, self._current)
        self.process = self._context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self._ready, self._owed, self._heard = False, 1, time.monotonic()

    def send(self, kind: str, slot: int, content: Any) -> None:
        """Give work to a slot; a dead worker is noticed when its answer is read."""
        if self._owed == 0:
            self._heard = time.monotonic()
        self._owed += 1
        try:
            self.pipe.send((kind, slot, content))
        except OSError:
            return

    def receive(self) -> tuple[str, int, Any] | None:
        """The next message, or None where the worker died."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self._owed, self._heard, self._ready = self._owed - 1, time.monotonic(), True
        return message

    @property
    def silence_left_s(self) -> float:
        """Seconds until this worker counts as hung; infinite where it has nothing to do."""
        if self._owed == 0:
            return float("inf")
        return self._heard + (self._timeout_s if self._ready else self._startup_s) - time.monotonic()

    @property
    def current_slot(self) -> int:
        """The slot that it is, or was when it died, working for; -1 for none."""
        return self._current.value

    def exit_code(self) -> int | None:
        """Of a process whose pipe has closed: its last moments may still be under way."""
        self.process.join(timeout=5)
        return self.process.exitcode

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def stop(self) -> None:
        """Let the process end by itself, for a few seconds."""
        try:
            self.pipe.send(("stop", -1, None))
        except OSError:
            self.kill()
            return
        self.process.join(timeout=5)
        self.kill()
