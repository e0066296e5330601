"""``wam calibrate``: the threshold of a policy's monitor, from episodes of its own in which all went well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wamkit.cli.closed_loop import closed_loop
from wamkit.cli.groups import ActingPolicyFlags, EnvFlags, task_list
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError

FILE = "calibration.json"


@dataclass(frozen=True)
class CalibrateArguments:
    """Calibrate a policy's monitor on its own successful episodes, for --calibration of wam serve and wam eval.

    The policy runs in simulation; what surprises it where it succeeds sets the threshold that at most the chosen share
    of such episodes exceeds.
    """

    policy: ActingPolicyFlags
    env: EnvFlags
    output_dir: Path
    """Folder for calibration.json and episodes.jsonl; not the checkpoint's own."""
    false_alarm_rate: float = 0.05
    """Share of successful episodes that may raise an alarm; 0.05 needs 25 successful episodes, 0.1 needs 11."""
    n_episodes: int = 40
    """Trials for each task."""
    first_trial: int = 100_000
    """Number of the first trial, of split train: far beyond those that recordings begin with; wam eval's are others."""
    n_action_steps: int | None = None
    """Actions executed of each chunk before the next, as the policy will be run later; by default all of it."""
    memory: int = 1
    """Surprises whose mean is compared with the threshold: more are calmer and later."""
    max_steps: int | None = None
    """Time limit of an episode in control steps; by default the simulator's."""
    batch_size: int = 8
    """Most episodes under way at once. Changes no result."""
    workers: int | None = None
    """Simulator processes; by default one a core. Changes no result."""
    timeout_s: float = 60.0
    """A simulator that says nothing for so long is killed and its episodes are run again."""
    seed: int = 0
    """Fixes sampled noise; initial states are fixed by task and trial."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    runtime: bool = False
    """Act and imagine through the runtime (wamkit.inference.runtime)."""
    resume: bool = False
    """Continue: finished episodes are kept, and --n_episodes may be more than before."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    print(calibrate_monitor(parse(CalibrateArguments, argv, verb="calibrate")))
    return 0


def calibrate_monitor(arguments: CalibrateArguments) -> str:
    """Writes ``calibration.json`` and says what it rests on.

    Raises:
        WamkitError: Too few trials, or too few that succeeded, for the false-alarm rate; a model that imagines
            nothing; an unknown task, no checkpoint, or a policy that does not fit the environment.
    """
    from wamkit.inference.monitor_calibration import least_for_calibration

    tasks = task_list(arguments.env.task, arguments.env.type)
    needed = least_for_calibration(arguments.false_alarm_rate)
    planned = arguments.n_episodes * len(tasks)
    if planned < needed:
        raise WamkitError(
            f"{planned} trials are too few: a false-alarm rate of {arguments.false_alarm_rate:g} needs {needed}"
            " successful episodes. Raise --n_episodes or --false_alarm_rate."
        )
    if (arguments.output_dir / "episodes.jsonl").exists() and not arguments.resume:
        raise WamkitError(
            f"{arguments.output_dir} holds episodes: go on with --resume, or choose another --output_dir."
        )
    _refuse_inside(arguments)

    from wamkit.cli.progress import progress_bar
    from wamkit.evaluation.rollout import RolloutSettings, rollout
    from wamkit.evaluation.watched_arm import WatchedArm, WatchedPolicy
    from wamkit.inference.settings import identity

    loop = closed_loop(
        arguments.policy,
        arguments.env,
        seed=arguments.seed,
        device=arguments.device,
        runtime=arguments.runtime,
        max_steps=arguments.max_steps,
    )
    checkpoint = identity(str(loop.record["checkpoint"]["sha256"]), arguments.policy.inference_settings())
    settings = RolloutSettings(
        n_action_steps=arguments.n_action_steps,
        seed=arguments.seed,
        split="train",
        first_trial=arguments.first_trial,
        n_episodes=arguments.n_episodes,
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        timeout_s=arguments.timeout_s,
    )
    arm = WatchedArm(WatchedPolicy(loop.policy), name="calibration", identity=checkpoint)
    with progress_bar("calibrating") as progress:
        episodes = rollout(
            [arm], tasks, loop.make, arguments.output_dir, settings, resume=arguments.resume, progress=progress
        )
    return _written(arguments, episodes, needed, checkpoint, loop.record)


def _refuse_inside(arguments: CalibrateArguments) -> None:
    """A file among the checkpoint's would change the digest that the calibration names.

    Raises:
        WamkitError: The output folder is the checkpoint's, or in it.
    """
    from wamkit.inference.checkpoints import checkpoint_folder

    folder = checkpoint_folder(arguments.policy.path).resolve()
    if arguments.output_dir.resolve().is_relative_to(folder):
        raise WamkitError(
            f"{arguments.output_dir} is the checkpoint's own folder, whose digest the calibration names: choose another"
            " --output_dir, such as one beside it."
        )


def _written(
    arguments: CalibrateArguments,
    episodes: Sequence[Mapping[str, Any]],
    needed: int,
    checkpoint: str,
    record: Mapping[str, Any],
) -> str:
    """Calibrate on the episodes that succeeded.

    Raises:
        WamkitError: They are too few.
    """
    from wamkit.evaluation.watched_arm import surprises_of
    from wamkit.inference.monitor_calibration import calibrate

    rate, succeeded = arguments.false_alarm_rate, [episode for episode in episodes if episode["success"]]
    # In an order that says nothing about them: the first ones give the scale, and must be of all tasks.
    usable = sorted((e for e in succeeded if e["surprises"]), key=lambda e: (e["trial"], e["task"]))
    short = len(succeeded) - len(usable)
    said = f"{len(succeeded)} of {len(episodes)} episodes succeeded" + (
        f", {short} of them before anything imagined for them was due" if short else ""
    )
    if len(usable) < needed:
        raise WamkitError(
            f"{said}: a false-alarm rate of {rate:g} needs {needed} successful episodes. What is finished is kept:"
            " go on with --resume and a larger --n_episodes, or with a larger --false_alarm_rate."
        )
    calibration = calibrate([surprises_of(episode) for episode in usable], rate, memory=arguments.memory)
    trials = [arguments.first_trial, arguments.first_trial + arguments.n_episodes - 1]
    by_task = {task: sum(e["task"] == task for e in usable) for task in sorted({e["task"] for e in episodes})}
    calibration = replace(
        calibration,
        checkpoint=checkpoint,
        made={
            "env": arguments.env.type,
            "successful_by_task": by_task,
            "episodes_run": len(episodes),
            "split": "train",
            "trials": trials,
            "n_action_steps": arguments.n_action_steps,
            **{name: record[name] for name in ("date", "command", "seeds")},
            "commit": record["code"]["commit"],
        },
    )
    path = arguments.output_dir / FILE
    calibration.save(path)
    return "\n".join(
        (
            said,
            f"threshold {calibration.threshold:.4g}: at most {100 * rate:g} % of successful episodes raise an alarm"
            f" (from {calibration.episodes} episodes, and {len(usable) - calibration.episodes} others for the scale)",
            str(path),
        )
    )
