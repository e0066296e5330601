"""``wam eval``: closed-loop success with intervals, beside control arms on the same trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wamkit.cli.closed_loop import ClosedLoop, closed_loop
from wamkit.cli.groups import ActingPolicyFlags, EnvFlags, names, task_list
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError, suggest

if TYPE_CHECKING:
    from wamkit.evaluation.arms import Arm
    from wamkit.inference.monitor_calibration import Calibration

ARMS = ("policy", "no_op", "random", "expert", "blind", "swapped_instruction")
USUAL_ARMS = ARMS[:-1]
"""Run where none are named."""
WATCHED = "policy"
"""The arm that a monitor watches."""


@dataclass(frozen=True)
class EvalFlags:
    """How to evaluate."""

    n_episodes: int = 20
    """Trials for each task; each has its own fixed initial state."""
    first_trial: int = 0
    """Number of the first trial."""
    split: Literal["eval", "train"] = "eval"
    """Whose initial states: recordings are made on those of train, none of which is one of eval."""
    n_action_steps: int | None = None
    """Actions to execute of each chunk before the next; by default all of it."""
    arms: str = ""
    """Arms separated by commas: policy, no_op, random, expert, blind, swapped_instruction; by default all but the last,
    and no expert where the simulator has none."""
    forward_size: int | None = None
    """Observations in one forward pass, always so many (copies fill it up), which is why batch_size and workers change
    no result; it may change the rounding. By default 4, and 1 for a policy with a memory."""
    batch_size: int = 8
    """Most episodes under way at once. Changes no result."""
    workers: int | None = None
    """Simulator processes; by default one a core. Changes no result."""
    max_steps: int | None = None
    """Time limit of an episode in control steps; by default the simulator's."""
    timeout_s: float = 60.0
    """A simulator that says nothing for so long is killed and its episodes are run again, and counted."""
    videos: int = 2
    """Trials of each arm and task to film for the report, beside the policy's failures; 0 for no film at all."""


@dataclass(frozen=True)
class EvalArguments:
    """Run a policy in a simulator and count successes, with intervals and paired tests against control arms."""

    policy: ActingPolicyFlags
    env: EnvFlags
    output_dir: Path
    """Folder for eval.json, episodes.jsonl and videos."""
    eval: EvalFlags = EvalFlags()
    seed: int = 0
    """Fixes sampled noise; initial states are fixed by task and trial."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    runtime: bool = False
    """Act through the runtime (wamkit.inference.runtime): faster, the same actions up to rounding."""
    calibration: Path | None = None
    """Watch the policy with its monitor (a file of wam calibrate): eval.json then says how often it raised an alarm."""
    resume: bool = False
    """Continue an evaluation that was stopped; its finished episodes are kept."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(EvalArguments, argv, verb="eval")
    print(evaluate(arguments))
    return 0


def evaluate(arguments: EvalArguments) -> str:
    """Writes ``eval.json`` and returns its table of success rates.

    Raises:
        WamkitError: An unknown task or arm, no checkpoint, a policy that does not fit the environment, or a monitor's
            calibration that is not this policy's.
    """
    tasks = task_list(arguments.env.task, arguments.env.type)
    wanted, left_out = wanted_arms(arguments.eval.arms, arguments.env.type, tasks)
    for name in wanted:
        if name not in ARMS:
            raise WamkitError(f"no arm {name!r}.{suggest(name, ARMS)}")
    _refuse_finished(arguments)
    calibration = _calibration(arguments, wanted)

    from wamkit.cli.progress import progress_bar
    from wamkit.evaluation.episode_video import VideoSettings
    from wamkit.evaluation.results import build_eval, write_eval
    from wamkit.evaluation.rollout import RolloutSettings, rollout
    from wamkit.evaluation.statistics import side_by_side
    from wamkit.evaluation.watched_arm import alarm_lines, alarm_rates

    flags = arguments.eval
    loop = closed_loop(
        arguments.policy,
        arguments.env,
        seed=arguments.seed,
        device=arguments.device,
        runtime=arguments.runtime,
        max_steps=flags.max_steps,
    )
    settings = RolloutSettings(
        n_action_steps=flags.n_action_steps,
        seed=arguments.seed,
        split=flags.split,
        first_trial=flags.first_trial,
        n_episodes=flags.n_episodes,
        forward_size=flags.forward_size,
        workers=flags.workers,
        batch_size=flags.batch_size,
        timeout_s=flags.timeout_s,
    )
    with progress_bar("evaluating") as progress:
        episodes = rollout(
            [_arm(name, loop, calibration) for name in wanted],
            tasks,
            loop.make,
            arguments.output_dir,
            settings,
            videos=VideoSettings(trials=flags.videos, failures_of=("policy",)) if flags.videos else None,
            resume=arguments.resume,
            progress=progress,
        )
    results = build_eval(episodes, loop.record)
    if left_out:
        results["notes"] = [*results.get("notes", ()), left_out]
    said = [*side_by_side(results["arms"]).lines(), *results.get("notes", ())]
    if calibration is not None:
        results["monitor"] = alarm_rates([e for e in episodes if e["arm"] == WATCHED], calibration)
        said += alarm_lines(results["monitor"])
    path = write_eval(arguments.output_dir / "eval.json", results)
    return "\n".join([*said, str(path)])


def wanted_arms(named: str, env_type: str, tasks: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The arms to run.

    Args:
        named: Separated by commas; empty for the usual ones.
        env_type: Simulator.
        tasks: Tasks of the evaluation.

    Returns:
        Names, and a sentence on what the usual arms lack here; empty where they lack nothing.

    Raises:
        EnvError: There is no such task, or the simulator that knows is absent.
    """
    if wanted := names(named):
        return wanted, ""
    from wamkit.envs.registry import has_expert

    without = [task for task in tasks if not has_expert(env_type, task)]
    if not without:
        return USUAL_ARMS, ""
    more = f" and {len(without) - 3} more" if len(without) > 3 else ""
    left_out = f"No expert was run: {env_type} has none for {', '.join(without[:3])}{more}."
    return tuple(name for name in USUAL_ARMS if name != "expert"), left_out


def _calibration(arguments: EvalArguments, wanted: Sequence[str]) -> Calibration | None:
    """The monitor's, where one is to watch.

    Raises:
        WamkitError: It is of another checkpoint or of another pace, or there is no arm to watch.
    """
    if arguments.calibration is None:
        return None
    if WATCHED not in wanted:
        raise WamkitError(f"--calibration watches the arm {WATCHED}: add it to --eval.arms, or leave the flag out.")
    from wamkit.evaluation.provenance import checkpoint_record
    from wamkit.inference.monitor_calibration import Calibration
    from wamkit.inference.policy import checkpoint_folder
    from wamkit.inference.settings import identity

    calibration = Calibration.load(arguments.calibration)
    checkpoint = checkpoint_record(checkpoint_folder(arguments.policy.path))["sha256"]
    calibration.refuse_other(identity(checkpoint, arguments.policy.inference_settings()))
    pace = calibration.made.get("n_action_steps", arguments.eval.n_action_steps)
    if pace != arguments.eval.n_action_steps:
        raise WamkitError(
            f"{arguments.calibration} was made with --n_action_steps {pace} and looks come at another pace here: set"
            " --eval.n_action_steps to that (all of a chunk where it is None), or calibrate anew."
        )
    return calibration


def _arm(name: str, loop: ClosedLoop, calibration: Calibration | None) -> Arm:
    from wamkit.evaluation import arms
    from wamkit.evaluation.watched_arm import WatchedArm, WatchedPolicy

    policy, identity = loop.policy, str(loop.record["checkpoint"])
    if name == WATCHED and calibration is not None:
        watched = f"{identity} watched at {calibration.threshold!r}, memory {calibration.memory}"
        return WatchedArm(WatchedPolicy(policy), calibration, name, identity=watched)
    if name == "swapped_instruction":
        return arms.SwappedInstructionArm(policy, loop.instructions, identity=identity)
    if name in ("policy", "blind"):
        kind = arms.PolicyArm if name == "policy" else arms.BlindArm
        return kind(policy, identity=identity)
    return {"no_op": arms.NoOpArm, "random": arms.RandomArm, "expert": arms.ExpertArm}[name]()


def _refuse_finished(arguments: EvalArguments) -> None:
    if (arguments.output_dir / "episodes.jsonl").exists() and not arguments.resume:
        raise WamkitError(
            f"{arguments.output_dir} holds an evaluation: continue it with --resume, or choose another --output_dir."
        )
