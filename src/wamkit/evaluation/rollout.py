"""Closed-loop evaluation: many environments in worker processes, one batched policy in this one.

An episode is (arm, task, trial). Its initial state depends on (task, trial), the policy's noise on (seed, task, trial,
number of the replan), an actor's on (seed, task, trial). The policy computes in groups of always the same size
(``forward_size``), all told one instruction; a group that is not full is filled up with copies. So the shapes that it
computes in depend on nothing but the settings, and a product of matrices of one shape rounds a row in the same way
whatever stands in the others. How many episodes are under way at once, in how many processes, and which of them happen
to wait together then decide only how long an evaluation takes: chunks and episodes are equal to the bit. Tests show it
for a LaWAM on a CPU. Another number of threads, another processor or a GPU may round otherwise, as may another
``forward_size``, which therefore belongs to a result; so do policies with a memory, whose histories are of different
length, in groups of more than one, which is why they are computed one by one unless told otherwise.

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
from wamkit.evaluation.episode_log import EpisodeLog
from wamkit.evaluation.episode_memory import EpisodeMemory, act_with_memory, look_every
from wamkit.evaluation.episode_video import VideoSettings
from wamkit.evaluation.workers import EnvFactory, Job, WorkerProcess

Progress = Callable[..., None]
"""``progress(done, total, note="")``."""
FORWARD_SIZE = 4
"""Of the usual eight episodes under way, half are simulated while the policy acts for the others."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How episodes are run. The first six belong to a result; the others change only its speed."""

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
    forward_size: int | None = None
    """Observations in one call of the policy, always exactly so many; None: ``FORWARD_SIZE``, and 1 for a policy with a
    memory, whose groups are never filled up."""
    workers: int | None = None
    """Simulator processes; None for one a core."""
    batch_size: int = 8
    """Most episodes under way at once."""
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
    """A slot that waits for a chunk; what its policy is shown is prepared by its arm."""

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
    if settings.n_episodes < 1 or settings.batch_size < 1 or (settings.forward_size or 1) < 1:
        raise EvaluationError("An evaluation has at least one episode for each task and batches of at least one.")
    env = make(names[0])
    spec = env.description
    env.close()
    trials = range(settings.first_trial, settings.first_trial + settings.n_episodes)
    episodes = [
        _Episode(arm, task, trial, position) for arm in arms for task in names for position, trial in enumerate(trials)
    ]
    log = EpisodeLog(Path(output_dir), _fingerprint(arms, spec, make, settings), resume)
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
        "forward_size": {arm.name: _forward_size(arm.policy, settings) for arm in arms if isinstance(arm, PolicyArm)},
        "split": settings.split,
        "arms": {arm.name: getattr(arm, "identity", "") for arm in arms},
    }
    return json.loads(json.dumps(same))


def _forward_size(policy: Any, settings: RolloutSettings) -> int:
    return settings.forward_size or (1 if getattr(policy, "remembers", False) else FORWARD_SIZE)


class _Evaluation:
    """The loop of the main process: hand out episodes, gather observations, let the policy act, watch the workers."""

    def __init__(
        self,
        make: Callable[[str], Environment],
        spec: EnvSpec,
        log: EpisodeLog,
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
                for group in self._groups():
                    self._act(group)
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
        wait_s = 0.0 if self._groups() else max(0.0, min(1.0, *(worker.silence_left_s for worker in self.workers)))
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
        *before, now = (
            arm.prepare(each, episode.task, episode.trial, self.spec)
            for each in (*content.pop("observed", ()), content)
        )
        self.waiting.append(_Request(worker, slot, episode, arm, now, before))

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

    def _groups(self) -> list[list[_Request]]:
        """What the policies can be asked now: full groups, or, where nobody else can join them, those that there are.

        A group is of one policy and one instruction: how long the others' instructions are must not matter either.
        """
        waiting: dict[tuple[int, str], list[_Request]] = {}
        for request in self.waiting:
            told = str(request.observation.get("task", ""))
            waiting.setdefault((id(request.arm.policy), told), []).append(request)
        full = []
        for group in waiting.values():
            size = _forward_size(group[0].arm.policy, self.settings)
            full += [group[first : first + size] for first in range(0, len(group) - size + 1, size)]
        under_way = sum(len(worker.jobs) for worker in self.workers)
        return full if full or under_way > len(self.waiting) else list(waiting.values())

    def _act(self, batch: list[_Request]) -> None:
        """One call of a policy, for a group that is filled up with copies of its first member."""
        policy = batch[0].arm.policy
        chosen = {id(request) for request in batch}
        self.waiting = deque(request for request in self.waiting if id(request) not in chosen)
        seeds = []
        for episode in (request.episode for request in batch):
            seeds.append(trial_seed("policy", self.settings.seed, episode.task, episode.trial, episode.replans) >> 1)
            episode.replans += 1
        observations = [request.observation for request in batch]
        if not getattr(policy, "remembers", False):
            copies = _forward_size(policy, self.settings) - len(batch)
            observations, seeds = observations + copies * observations[:1], seeds + copies * seeds[:1]
        memories = [request.episode.memory for request in batch]
        seen = [request.observed for request in batch]
        chunks = act_with_memory(
            policy, memories, seen, lambda: np.asarray(policy.act_batch(observations, seeds=seeds))
        )
        actions = len(self.spec.action_names)
        count = len(observations)
        if chunks.ndim != 3 or chunks.shape[0] != count or chunks.shape[2] != actions or not chunks.shape[1]:
            raise EvaluationError(
                f"The policy gave the shape {chunks.shape} for {count} observations; "
                f"{self.spec.name} takes [{count}, K, {actions}]: evaluate it where it was trained."
            )
        for sample, (request, chunk) in enumerate(zip(batch, chunks[: len(batch)], strict=True)):
            steps = request.arm.n_action_steps or self.settings.n_action_steps or len(chunk)
            if not 1 <= steps <= len(chunk):
                raise EvaluationError(f"Cannot execute {steps} actions of a chunk of {len(chunk)}.")
            episode = request.episode
            request.arm.acted(episode.task, episode.trial, episode.executed / self.spec.rate_hz, sample)
            episode.executed += steps
            sent = np.ascontiguousarray(chunk[:steps], dtype=np.float32)
            # What the simulator makes of it: a causal model must not remember a reach that the limits cut short.
            episode.memory.executed = np.clip(sent, self.spec.action_low, self.spec.action_high).astype(np.float32)
            request.worker.send("chunk", request.slot, sent)
