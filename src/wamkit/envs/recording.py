"""Record a simulator's expert into a LeRobot data set, simulating in several processes and encoding in this one.

The episodes and their order depend only on the arguments, not on the number of workers: trials are tried in order,
failures are dropped and counted, and an episode is written when all before it are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wamkit.envs.base import EnvError, Environment, EnvSpec
from wamkit.envs.demonstration import Demonstration, DemonstrationSettings, demonstrate, picture_stride
from wamkit.envs.registry import instruction, make_env
from wamkit.envs.worker_process import prepare_worker
from wamkit.json_files import read_json_lines, write_json_lines

TRIALS_PATH = Path("meta/trials.jsonl")
"""Beside LeRobot's metadata: which trial each episode is, and which were dropped."""

Progress = Callable[..., None]
"""``progress(done, total, note="")``."""


@dataclass(frozen=True, kw_only=True)
class RecordingSummary:
    """What a recording holds and what it cost."""

    root: Path
    episodes: int
    frames: int
    dropped: Mapping[str, int]
    """Task -> trials that the expert failed."""
    steps: Mapping[str, float]
    """Task -> mean length of its episodes."""
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.episodes} episodes, {self.frames} frames in {self.root} ({self.seconds:.0f} s)"]
        lines += [
            f"  {task}: {self.steps[task]:.0f} steps on average, {count} failure{'' if count == 1 else 's'} dropped"
            for task, count in self.dropped.items()
        ]
        return "\n".join(lines)


def record_episodes(
    env_type: str,
    tasks: str | Sequence[str],
    output_dir: Path | str,
    *,
    episodes: int = 25,
    seed: int = 0,
    resolution: int | tuple[int, int] = 128,
    cameras: tuple[str, ...] | None = None,
    max_steps: int | None = None,
    action_noise: float = 0.0,
    noise_time_s: float = 0.1,
    hold_steps: int = 10,
    video_rate_hz: float | None = None,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> RecordingSummary:
    """Record successful demonstrations of the packaged expert, all tasks into one data set.

    Args:
        env_type: Simulator, such as ``"metaworld"``.
        tasks: One task or several; each row carries the task's instruction.
        output_dir: Folder of the data set; must not exist, or hold an interrupted recording and ``resume`` be True.
        episodes: Successful episodes of each task.
        seed: Namespace of initial states and noise.
        resolution: Of the pictures: side, or (height, width).
        cameras: The simulator's names; None for its default.
        max_steps: Time limit; None for the simulator's default.
        action_noise: See :class:`~wamkit.envs.demonstration.DemonstrationSettings`, also for the next three.
        noise_time_s: Correlation time of the noise.
        hold_steps: Steps recorded from the first success on.
        video_rate_hz: Rate at which pictures are new; None for each row.
        workers: Simulator processes; None for one a core, 0 to simulate in this process.
        resume: Continue an interrupted recording of the same settings; finished episodes are kept.
        progress: Told after each episode.
        env_options: What the adapter takes besides.

    Returns:
        What was recorded, and how many trials were dropped.

    Raises:
        EnvError: An unknown task or camera, an expert that fails most trials, or other settings than those resumed.
        DatasetError: The folder exists, or cannot be written.
    """
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names or len(set(names)) != len(names):
        raise EnvError(f"Name each task once, and at least one; got {', '.join(names) or 'none'}.")
    settings = DemonstrationSettings(
        action_noise=action_noise,
        noise_time_s=noise_time_s,
        hold_steps=hold_steps,
        video_rate_hz=video_rate_hz,
        seed=seed,
    )
    options = {"resolution": resolution, "cameras": cameras, "max_steps": max_steps, "seed": seed}
    simulation = _Simulation(env_type, {**options, **(env_options or {})}, settings)
    return _Recording(simulation, names, Path(output_dir), episodes, resume, progress).run(
        workers if workers is not None else (os.cpu_count() or 1)
    )


@dataclass(frozen=True)
class _Simulation:
    """All that a worker must know to make any demonstration of this recording."""

    env_type: str
    env_options: Mapping[str, Any]
    settings: DemonstrationSettings

    def make(self, task: str) -> Environment:
        return make_env(self.env_type, task, **self.env_options)


_env: tuple[str, Environment] | None = None


def _demonstrate(simulation: _Simulation, task: str, trial: int) -> Demonstration:
    """In a worker: one demonstration, in the environment that the last call left where the task is the same."""
    global _env
    if _env is None or _env[0] != task:
        _close_env()
        _env = (task, simulation.make(task))
    return demonstrate(_env[1], trial, simulation.settings)


def _close_env() -> None:
    global _env
    if _env is not None:
        _env[1].close()
    _env = None


class _InThisProcess:
    """An executor for ``workers=0``."""

    def submit(self, call: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(call(*arguments))
        return future


@contextmanager
def _executor(workers: int) -> Iterator[_InThisProcess | ProcessPoolExecutor]:
    if workers == 0:
        try:
            yield _InThisProcess()
        finally:
            _close_env()
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=prepare_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Recording:
    """Which trials are done, which are under way, and the data set that they go into."""

    def __init__(
        self,
        simulation: _Simulation,
        tasks: tuple[str, ...],
        root: Path,
        episodes: int,
        resume: bool,
        progress: Progress | None,
    ) -> None:
        self.simulation, self.tasks, self.root, self.episodes = simulation, tasks, root, episodes
        self.progress = progress
        for task in tasks:  # an unknown one is told before anything starts
            instruction(simulation.env_type, task)
        self.settings = {**asdict(simulation.settings), **dict(simulation.env_options)}
        self.settings = json.loads(json.dumps(self.settings))
        self.resume = resume and root.exists()
        self.log = self._read_log() if self.resume else []
        self.pending: dict[tuple[str, int], Future] = {}

    def _describe(self) -> EnvSpec:
        env = self.simulation.make(self.tasks[0])
        env.close()
        return env.description

    def _read_log(self) -> list[dict[str, Any]]:
        from wamkit.data.lerobot_files import read_extra

        log = self.root / TRIALS_PATH
        before = read_extra(self.root).get("recording")
        for key, value in self.settings.items():
            if before is not None and before.get(key) != value:
                raise EnvError(
                    f"{self.root} was recorded with {key}={before.get(key)!r}, not {value!r}: "
                    "resume with the same settings, or record into another folder."
                )
        mend = "restore the file, or record into another folder."
        return read_json_lines(log, EnvError, mend, may_be_cut=True) if log.is_file() else []

    def run(self, workers: int) -> RecordingSummary:
        start = time.perf_counter()
        in_flight = 2 * max(1, workers)
        with _executor(workers) as pool:
            if workers:  # simulate while this process still imports
                self._fill(pool, 0, in_flight)
            spec = self._describe()
            stride = picture_stride(spec, self.simulation.settings.video_rate_hz)
            # LeRobot's writer brings torch along: in this process only, the workers stay light.
            from wamkit.data.recorder import LeRobotRecorder

            metadata = {"source": f"{spec.name} expert", "versions": dict(spec.versions), "recording": self.settings}
            if spec.notes:
                metadata["notes"] = list(spec.notes)
            with LeRobotRecorder(
                self.root,
                spec.rate_hz,
                dict(spec.cameras),
                spec.state_names,
                spec.action_names,
                spec.embodiment,
                extra_features={"action_executed": spec.action_names},
                video_rate_hz=spec.rate_hz / stride,
                metadata=metadata,
                resume=self.resume,
            ) as recorder:
                self._record_all(recorder, pool, in_flight)
        kept = [line for line in self.log if line["success"]]
        per_task = {task: [line["steps"] for line in kept if line["task"] == task] for task in self.tasks}
        failed = [line["task"] for line in self.log if not line["success"]]
        return RecordingSummary(
            root=self.root,
            episodes=len(kept),
            frames=sum(line["steps"] for line in kept),
            dropped={task: failed.count(task) for task in self.tasks},
            steps={task: sum(steps) / max(1, len(steps)) for task, steps in per_task.items()},
            seconds=time.perf_counter() - start,
        )

    def _record_all(self, recorder: Any, pool: Any, in_flight: int) -> None:
        stored = sum(line["success"] for line in self.log)
        # A kill between writing an episode and logging it leaves one episode more than the log knows.
        unlogged = recorder.episodes - stored
        if unlogged not in (0, 1):
            raise EnvError(
                f"{self.root} holds {recorder.episodes} episodes but its {TRIALS_PATH} knows {stored}: "
                "it was changed since; record into another folder."
            )
        write_json_lines(self.root / TRIALS_PATH, self.log)  # without a last line that a kill cut short
        with (self.root / TRIALS_PATH).open("a") as log:
            for position, task in enumerate(self.tasks):
                while self._count(task, True) < self.episodes:
                    self._refuse_hopeless(task)
                    self._fill(pool, position, in_flight)
                    trial = self._next_trial(task)
                    shown = self._result(task, trial)
                    if shown.success and unlogged:
                        unlogged = 0
                    elif shown.success:
                        _write(recorder, shown)
                    line = {"task": task, "trial": trial, "success": shown.success, "steps": shown.length}
                    self.log.append(line)
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    if self.progress is not None:
                        done = sum(line["success"] for line in self.log)
                        self.progress(done, self.episodes * len(self.tasks), note=task)

    def _count(self, task: str, success: bool) -> int:
        return sum(line["task"] == task and line["success"] == success for line in self.log)

    def _next_trial(self, task: str) -> int:
        return sum(line["task"] == task for line in self.log)

    def _fill(self, pool: Any, position: int, in_flight: int) -> None:
        """Submit what will be needed if every expert succeeds, in the order of writing."""
        for task in self.tasks[position:]:
            first = self._next_trial(task)
            for trial in range(first, first + self.episodes - self._count(task, True)):
                if len(self.pending) >= in_flight:
                    return
                if (task, trial) not in self.pending:
                    self.pending[task, trial] = pool.submit(_demonstrate, self.simulation, task, trial)

    def _result(self, task: str, trial: int) -> Demonstration:
        try:
            return self.pending.pop((task, trial)).result()
        except BrokenProcessPool as error:
            raise EnvError(
                "A simulator process died (out of memory, or killed): go on with resume=True; "
                "the finished episodes are kept."
            ) from error

    def _refuse_hopeless(self, task: str) -> None:
        failed = self._count(task, False)
        if failed > 10 + 2 * self.episodes:
            raise EnvError(
                f"The expert failed {failed} of {self._next_trial(task)} trials of {task}: "
                "allow more steps or less action noise, or choose another task."
            )


def _write(recorder: Any, shown: Demonstration) -> None:
    for row in range(shown.length):
        picture = row // shown.picture_stride
        recorder.add_frame(
            {camera: pictures[picture] for camera, pictures in shown.images.items()},
            shown.states[row],
            shown.actions[row],
            shown.instruction,
            action_executed=shown.executed[row],
        )
    recorder.save_episode(success=True)
