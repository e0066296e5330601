"""``wam record``: demonstrations of a simulator's packaged expert, as a LeRobot data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamkit.cli.groups import EnvFlags, names, task_list
from wamkit.cli.parsing import parse


@dataclass(frozen=True)
class RecordArguments:
    """Record demonstrations of a simulator's expert into a LeRobot data set; failures are dropped and counted."""

    env: EnvFlags
    output_dir: Path
    """Folder of the data set to write."""
    episodes: int = 25
    """Successful episodes to keep for each task."""
    seed: int = 0
    """Fixes the initial states and the noise."""
    action_noise: float = 0.0
    """Standard deviation of the noise on what is executed, in action units: wider coverage of states."""
    video_rate_hz: float | None = None
    """Rate at which pictures are new; by default each row has its own."""
    workers: int | None = None
    """Simulator processes; by default one a core. Changes no result."""
    resume: bool = False
    """Continue a recording that was interrupted; its finished episodes are kept."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(RecordArguments, argv, verb="record")
    tasks = task_list(arguments.env.task, arguments.env.type)

    from wamkit.cli.progress import progress_bar
    from wamkit.envs.recording import record_episodes

    with progress_bar("recording") as progress:
        summary = record_episodes(
            arguments.env.type,
            tasks,
            arguments.output_dir,
            episodes=arguments.episodes,
            seed=arguments.seed,
            resolution=arguments.env.resolution or 128,
            cameras=names(arguments.env.cameras) or None,
            action_noise=arguments.action_noise,
            video_rate_hz=arguments.video_rate_hz,
            workers=arguments.workers,
            resume=arguments.resume,
            progress=progress,
            env_options={"gripper": arguments.env.gripper} if arguments.env.gripper else None,
        )
    print(summary)
    return 0
