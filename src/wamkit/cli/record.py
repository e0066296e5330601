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
    output_dir: Path | None = None
    """Folder of the data set to write; by default one named after the tasks, such as data/metaworld_reach-v3."""
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


def default_folder(env: EnvFlags) -> Path:
    """Where a recording goes that names no folder: ``data/<type>_<task>``, of many tasks the first and their number."""
    wanted = names(env.task)
    told = "+".join(wanted) if len(wanted) <= 3 else f"{wanted[0]}_and_{len(wanted) - 1}_more"
    return Path("data") / f"{env.type}_{told}"


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(RecordArguments, argv, verb="record")
    tasks = task_list(arguments.env.task, arguments.env.type)
    output_dir = arguments.output_dir or default_folder(arguments.env)

    from wamkit.cli.progress import progress_bar
    from wamkit.envs.recording import record_episodes

    with progress_bar("recording") as progress:
        summary = record_episodes(
            arguments.env.type,
            tasks,
            output_dir,
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
