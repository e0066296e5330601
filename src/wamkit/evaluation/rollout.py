"""Closed-loop evaluation: many environments in worker processes, one batched policy in this one.

An episode is (arm, task, trial). Its initial state depends on (task, trial), the policy's noise on (seed, task, trial,
number of the replan), an actor's on (seed, task, trial): the number of workers and the size of a batch decide only how
long it takes. One thing is outside our hands: a matrix product of another batch size may round differently, so a
policy's chunks agree between batch sizes to about 1e-5 of their scale in float32, not to the bit. A policy that
computes each sample apart (``batch_size=1`` is one way) gives equal episodes to the bit; the tests show it.

Finished episodes are appended to a JSON-lines file at once. A stopped evaluation resumes from it.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.envs.base import Environment, EnvSpec, Split, trial_seed
from wamkit.evaluation.arms import ActorArm, Arm, EvaluationError, PolicyArm
from wamkit.evaluation.episode_memory import EpisodeMemory, act_with_memory, look_every
from wamkit.evaluation.episode_video import VideoSettings
from wamkit.evaluation.workers import EnvFactory, Job, WorkerProcess

Progress = Callable[..., None]
"""``progress(done, total, note="")``."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How episodes are run. The first five belong to a result; the others change only its speed."""

    n_action_steps: int | None = None
    """Actions executed of each chunk before the next observation; None for the whole chunk."""
    seed: int = 0
    """Of the policy's noise and the random arm, not of the initial states."""
    split: Split = "eval"
    """Which namespace of initial states."""
    first_trial: int = 0
    """Trials are first_trial, first_trial + 1, ..."""
    n_episodes: int = 20
    """Trials of each task."""
    workers: int | None = None
    """Simulator processes; None for one a core."""
    batch_size: int = 8
    """Most episodes under way at once, and samples in one call of the policy."""
    timeout_s: float = 60.0
    """A simulator that says nothing for so long while it has work is killed and its episodes are run again."""
    startup_s: float = 300.0
    """The same, while a worker imports its simulator."""
    max_retries: int = 3
    """An episode that kills its simulator more often than this stops the evaluation."""


@dataclass
class _Episode:
    """One cell of (arm, task, trial), how often it was started again, and the actions sent to it so far."""

    arm: Arm
    task: str
    trial: int
    position: int
    """Of the trial in the list of trials."""
    retries: int = 0
    blamed: int = 0
    replans: int = 0
    executed: int = 0
    memory: EpisodeMemory = field(default_factory=EpisodeMemory)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.arm.name, self.task, self.trial


@dataclass
class _Request:
    """A slot that waits for a chunk."""

    worker: WorkerProcess
    slot: int
    episode: _Episode
    arm: PolicyArm
    observation: dict[str, Any] = field(default_factory=dict)
    observed: list[dict[str, Any]] = field(default_factory=list)
    """Seen while the last chunk was executed, oldest first."""


def rollout(
    arms: Sequence[Arm],
    tasks: str | Sequence[str],
    make: EnvFactory | Callable[[str], Environment],
    output_dir: Path | str,
    settings: RolloutSettings | None = None,
    *,
    videos: VideoSettings | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run every arm on every trial of every task.

    Args:
        arms: With different names. :class:`~wamkit.evaluation.arms.PolicyArm` and its kind share batches where they
            share a policy.
        tasks: One task or several.
        make: Makes a task's environment, here (for its description) and in the workers: picklable.
        output_dir: For ``episodes.jsonl`` and ``videos/``.
        settings: How episodes are run.
        videos: Which episodes to film; None for none.
        resume: Keep the episodes that ``episodes.jsonl`` holds. Without it, the file must not exist.
        progress: Told after each episode.

    Returns:
        One dictionary for each episode, sorted as ``arms`` x ``tasks`` x trials: ``arm``, ``task``, ``trial``,
        ``seed``, ``success``, ``steps``, ``seconds``, ``retries``; also ``video`` (relative to ``output_dir``) where
        filmed; for an arm with a policy ``replans`` and ``path`` (the state at 5 Hz); and what the arm notes.

    Raises:
        EvaluationError: Two arms of one name, other settings than those resumed, a chunk of a wrong shape, or a
            simulator that cannot run an episode.
        EnvError: An unknown task or camera, or an action that the environment refuses.
    """
    settings = settings or RolloutSettings()
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for what, values in (("arm", [arm.name for arm in arms]), ("task", list(names))):
        if not values or len(set(values)) != len(values):
            raise EvaluationError(f"Name each {what} once, and at least one; got {', '.join(values) or 'none'}.")
    if settings.n_episodes < 1 or settings.batch_size < 1:
        raise EvaluationError("An evaluation has at least one episode for each task and a batch of at least one.")
    env = make(names[0])
    spec = env.description
    env.close()
    trials = range(settings.first_trial, settings.first_trial + settings.n_episodes)
    episodes = [
        _Episode(arm, task, trial, position) for arm in arms for task in names for position, trial in enumerate(trials)
    ]
    log = _Log(Path(output_dir), _fingerprint(arms, spec, make, settings), resume)
    todo = [episode for episode in episodes if episode.key not in log.done]
    if todo:
        _Evaluation(make, spec, log, settings, videos, progress, len(episodes)).run(todo)
    return [log.done[episode.key] for episode in episodes]


def _fingerprint(arms: Sequence[Arm], spec: EnvSpec, make: Any, settings: RolloutSettings) -> dict[str, Any]:
    """What must be the same for two halves of an evaluation to make one."""
    options = make.options if isinstance(make, EnvFactory) else {}
    same = {
        "env": spec.name,
        "env_options": dict(options),
        "cameras": dict(spec.cameras),
        "max_steps": spec.max_steps,
        "versions": dict(spec.versions),
        "n_action_steps": settings.n_action_steps,
        "seed": settings.seed,
        "split": settings.split,
        "arms": {arm.name: getattr(arm, "identity", "") for arm in arms},
    }
    return json.loads(json.dumps(same))


class _Log:
    """Finished episodes on disk, one JSON object a line; the first line says under which settings."""

    def __init__(self, output_dir: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self.output_dir, self.path = output_dir, output_dir / "episodes.jsonl"
        self.done: dict[tuple[str, str, int], dict[str, Any]] = {}
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not resume:
            raise EvaluationError(f"{self.path} exists: resume that evaluation, or choose another output folder.")
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill can cut the last one
        if not whole:
            self._rewrite([json.dumps(fingerprint) + "\n"])
            return
        before = json.loads(whole[0])
        self._refuse_other(before, fingerprint)
        self._rewrite(
            [json.dumps({**fingerprint, "arms": {**before["arms"], **fingerprint["arms"]}}) + "\n", *whole[1:]]
        )
        for line in whole[1:]:
            episode = json.loads(line)
            self.done[episode["arm"], episode["task"], episode["trial"]] = episode

    def _refuse_other(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        pairs = [(key, before.get(key), value) for key, value in now.items() if key != "arms"]
        pairs += [
            (f"arm {name}", before["arms"][name], now["arms"][name])
            for name in before["arms"].keys() & now["arms"].keys()
        ]
        for name, old, new in pairs:
            if old != new:
                raise EvaluationError(
                    f"{self.path} was begun with {name}={old!r}, not {new!r}: "
                    "resume with the same settings, or choose another output folder."
                )

    def _rewrite(self, lines: list[str]) -> None:
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(lines))
        os.replace(temporary, self.path)

    def append(self, episode: dict[str, Any]) -> None:
        self.done[episode["arm"], episode["task"], episode["trial"]] = episode
        with self.path.open("a") as file:
            file.write(json.dumps(episode) + "\n")


class _Evaluation:
    """The loop of the main process: hand out episodes, gather observations, let the policy act, watch the workers."""

    def __init__(
        self,
        make: Callable[[str], Environment],
        spec: EnvSpec,
        log: _Log,
        settings: RolloutSettings,
        videos: VideoSettings | None,
        progress: Progress | None,
        total: int,
    ) -> None:
        self.make, self.spec, self.log, self.settings, self.videos = make, spec, log, settings, videos
        self.progress, self.total, self.finished = progress, total, 0
        self.queue: deque[_Episode] = deque()
        self.waiting: deque[_Request] = deque()
        self.workers: list[WorkerProcess] = []

    def run(self, episodes: Sequence[_Episode]) -> None:
        self.queue.extend(episodes)
        self.finished = self.total - len(episodes)
        at_once = min(self.settings.batch_size, len(episodes))
        count = min(self.settings.workers or os.cpu_count() or 1, at_once)
        for policy in {id(e.arm.policy): e.arm.policy for e in episodes if isinstance(e.arm, PolicyArm)}.values():
            policy.reset()
        try:
            for index in range(count):
                slots = at_once // count + (index < at_once % count)
                timeouts = (self.settings.timeout_s, self.settings.startup_s)
                self.workers.append(WorkerProcess(self.make, self.spec, slots, *timeouts))
            while self.queue or any(worker.jobs for worker in self.workers):
                self._hand_out()
                self._listen()
                if self.waiting:
                    self._act()
        except BaseException:
            for worker in self.workers:
                worker.kill()
            raise
        for worker in self.workers:
            worker.stop()

    def _hand_out(self) -> None:
        """Fill free slots, the emptiest worker first."""
        while self.queue:
            worker = max(self.workers, key=lambda each: each.slots - len(each.jobs))
            free = [slot for slot in range(worker.slots) if slot not in worker.jobs]
            if not free:
                return
            episode = self.queue.popleft()
            episode.replans, episode.executed, episode.memory = 0, 0, EpisodeMemory()
            worker.jobs[free[0]] = episode
            worker.send("start", free[0], self._job(episode))

    def _job(self, episode: _Episode) -> Job:
        arm, video = episode.arm, None
        kept = "never" if self.videos is None else self.videos.kept(arm.name, episode.position)
        if self.videos is not None and kept != "never":
            video = (self.log.output_dir / self._video_name(episode), self.videos)
        return Job(
            task=episode.task,
            trial=episode.trial,
            split=self.settings.split,
            seed=self.settings.seed,
            actor=arm if isinstance(arm, ActorArm) else None,
            images=isinstance(arm, PolicyArm) and arm.needs_images,
            video=video,
            keep_success=kept == "always",
            look_every=look_every(arm, self.spec.rate_hz),
        )

    @staticmethod
    def _video_name(episode: _Episode) -> str:
        return f"videos/{episode.arm.name}_{episode.task}_{episode.trial:04d}.mp4"

    def _listen(self) -> None:
        """Take every message that is there; wait for one only where the policy has nothing to do."""
        wait_s = 0.0 if self.waiting else max(0.0, min(1.0, *(worker.silence_left_s for worker in self.workers)))
        pipes: dict[Any, WorkerProcess] = {worker.pipe: worker for worker in self.workers}
        ready = multiprocessing.connection.wait(list(pipes), timeout=wait_s)
        while ready:
            for pipe in ready:
                self._hear(pipes[pipe])
            pipes = {worker.pipe: worker for worker in self.workers}
            ready = multiprocessing.connection.wait(list(pipes), timeout=0.0)
        for worker in self.workers:
            if worker.silence_left_s <= 0:
                self._replace(worker, f"said nothing for {self.settings.timeout_s:g} s")

    def _hear(self, worker: WorkerProcess) -> None:
        message = worker.receive()
        if message is None:
            self._replace(worker, f"died (exit code {worker.exit_code()})")
            return
        kind, slot, content = message
        if kind == "ready":
            return
        if kind == "refused":
            raise EvaluationError(f"{self._named(worker.jobs[slot])}: {content}")
        if kind == "crashed":
            self._replace(worker, f"crashed:\n{content}", slot)
            return
        episode = worker.jobs[slot]
        if kind == "done":
            del worker.jobs[slot]
            self._finish(episode, content)
            return
        arm = episode.arm
        assert isinstance(arm, PolicyArm)  # an actor asks for nothing
        if arm.needs_images:
            # Copied: the worker writes here again while the policy's call is still being prepared.
            for camera, picture in worker.pictures[slot].items():
                content[f"observation.images.{camera}"] = picture.copy()
        seen = content.pop("observed", [])
        self.waiting.append(_Request(worker, slot, episode, arm, content, seen))

    def _finish(self, episode: _Episode, result: dict[str, Any]) -> None:
        arm, task, trial = episode.key
        episode.memory = EpisodeMemory()  # nothing is kept of an episode that is over
        seconds, filmed = result.pop("seconds"), result.pop("filmed")
        record = {"arm": arm, "task": task, "trial": trial, "seed": self.settings.seed, **result}
        record |= {"seconds": seconds, "retries": episode.retries}
        if isinstance(episode.arm, PolicyArm):
            record |= {"replans": episode.replans, **episode.arm.notes(task, trial)}
        if filmed:
            record["video"] = self._video_name(episode)
        self.log.append(record)
        if self.progress is not None:
            self.finished += 1
            self.progress(self.finished, self.total, note=f"{arm} {task}")

    def _replace(self, worker: WorkerProcess, why: str, slot: int | None = None) -> None:
        """Kill a worker, put its episodes back in front of the queue, and start another in its place."""
        culprit = worker.jobs.get(worker.current_slot if slot is None else slot)
        worker.kill()
        self.waiting = deque(request for request in self.waiting if request.worker is not worker)
        if culprit is None and not worker.jobs:
            raise EvaluationError(f"A simulator process {why} before it had anything to do.")
        if culprit is not None:
            culprit.blamed += 1
            if culprit.blamed > self.settings.max_retries:
                raise EvaluationError(
                    f"{self._named(culprit)}: its simulator {why}, {culprit.blamed} times over; "
                    "the finished episodes are kept, so the evaluation can be resumed once this is mended."
                )
        for episode in sorted(worker.jobs.values(), key=lambda each: each.key, reverse=True):
            episode.retries += 1
            self.queue.appendleft(episode)
        worker.start()

    @staticmethod
    def _named(episode: _Episode) -> str:
        return f"{episode.arm.name} on {episode.task}, trial {episode.trial}"

    def _act(self) -> None:
        """One batched call of the policy that has waited longest."""
        policy = self.waiting[0].arm.policy
        batch = [request for request in self.waiting if request.arm.policy is policy][: self.settings.batch_size]
        chosen = {id(request) for request in batch}
        self.waiting = deque(request for request in self.waiting if id(request) not in chosen)
        observations, seen, seeds = [], [], []
        for request in batch:
            episode = request.episode
            *before, now = (
                request.arm.prepare(each, episode.task, episode.trial, self.spec)
                for each in (*request.observed, request.observation)
            )
            observations.append(now)
            seen.append(before)
            seeds.append(trial_seed("policy", self.settings.seed, episode.task, episode.trial, episode.replans) >> 1)
            episode.replans += 1
        memories = [request.episode.memory for request in batch]
        chunks = act_with_memory(
            policy, memories, seen, lambda: np.asarray(policy.act_batch(observations, seeds=seeds))
        )
        actions = len(self.spec.action_names)
        if chunks.ndim != 3 or chunks.shape[0] != len(batch) or chunks.shape[2] != actions or not chunks.shape[1]:
            raise EvaluationError(
                f"The policy gave the shape {chunks.shape} for {len(batch)} observations; "
                f"{self.spec.name} takes [{len(batch)}, K, {actions}]: evaluate it where it was trained."
            )
        for sample, (request, chunk) in enumerate(zip(batch, chunks, strict=True)):
            steps = request.arm.n_action_steps or self.settings.n_action_steps or len(chunk)
            if not 1 <= steps <= len(chunk):
                raise EvaluationError(f"Cannot execute {steps} actions of a chunk of {len(chunk)}.")
            episode = request.episode
            request.arm.acted(episode.task, episode.trial, episode.executed / self.spec.rate_hz, sample)
            episode.executed += steps
            episode.memory.executed = np.ascontiguousarray(chunk[:steps], dtype=np.float32)
            request.worker.send("chunk", request.slot, episode.memory.executed)
