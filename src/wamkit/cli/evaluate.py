"""``wam eval``: closed-loop success with intervals, beside control arms on the same trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wamkit.cli.groups import ActingPolicyFlags, EnvFlags, names, task_list
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError, suggest

if TYPE_CHECKING:
    from wamkit.evaluation.arms import Arm

ARMS = ("policy", "no_op", "random", "expert", "blind", "swapped_instruction")


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
    arms: str = "policy,no_op,random,blind"
    """Arms separated by commas: policy, no_op, random, expert, blind, swapped_instruction."""
    batch_size: int = 8
    """Most environments that one forward pass serves; changes no result."""
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
        WamkitError: An unknown task or arm, no checkpoint, or a policy that does not fit the environment.
    """
    tasks = task_list(arguments.env.task, arguments.env.type)
    wanted = names(arguments.eval.arms)
    for name in wanted:
        if name not in ARMS:
            raise WamkitError(f"no arm {name!r}.{suggest(name, ARMS)}")
    _refuse_finished(arguments)

    from wamkit.cli.progress import progress_bar
    from wamkit.configuration import to_dict
    from wamkit.envs.registry import instruction
    from wamkit.evaluation.episode_video import VideoSettings
    from wamkit.evaluation.provenance import collect
    from wamkit.evaluation.results import build_eval, write_eval
    from wamkit.evaluation.rollout import RolloutSettings, rollout
    from wamkit.evaluation.statistics import side_by_side
    from wamkit.evaluation.workers import EnvFactory
    from wamkit.inference.policy import checkpoint_folder, load

    folder = checkpoint_folder(arguments.policy.path)
    instructions = {task: instruction(arguments.env.type, task) for task in tasks}
    policy = load(
        folder,
        device=arguments.device,
        runtime=arguments.runtime,
        embodiment=arguments.policy.embodiment,
        rate_hz=arguments.policy.rate_hz,
    )
    from wamkit.cli.check import fitting_env_options, refuse_misfit

    options = fitting_env_options(policy.contract, arguments.env, arguments.eval.max_steps)
    make = EnvFactory(arguments.env.type, options)
    refuse_misfit(policy, make(tasks[0]), instructions.values())
    record = collect(checkpoint=folder, config=to_dict(policy.model.config), seeds=[arguments.seed])
    flags = arguments.eval
    settings = RolloutSettings(
        n_action_steps=flags.n_action_steps,
        seed=arguments.seed,
        split=flags.split,
        first_trial=flags.first_trial,
        n_episodes=flags.n_episodes,
        workers=flags.workers,
        batch_size=flags.batch_size,
        timeout_s=flags.timeout_s,
    )
    with progress_bar("evaluating") as progress:
        episodes = rollout(
            [_arm(name, policy, instructions, str(record["checkpoint"])) for name in wanted],
            tasks,
            make,
            arguments.output_dir,
            settings,
            videos=VideoSettings(trials=flags.videos, failures_of=("policy",)) if flags.videos else None,
            resume=arguments.resume,
            progress=progress,
        )
    results = build_eval(episodes, record)
    path = write_eval(arguments.output_dir / "eval.json", results)
    return "\n".join([*side_by_side(results["arms"]).lines(), *results.get("notes", ()), str(path)])


def _arm(name: str, policy: Any, instructions: dict[str, str], identity: str) -> Arm:
    from wamkit.evaluation import arms

    if name == "swapped_instruction":
        return arms.SwappedInstructionArm(policy, instructions, identity=identity)
    if name in ("policy", "blind"):
        kind = arms.PolicyArm if name == "policy" else arms.BlindArm
        return kind(policy, identity=identity)
    return {"no_op": arms.NoOpArm, "random": arms.RandomArm, "expert": arms.ExpertArm}[name]()


def _refuse_finished(arguments: EvalArguments) -> None:
    if (arguments.output_dir / "episodes.jsonl").exists() and not arguments.resume:
        raise WamkitError(
            f"{arguments.output_dir} holds an evaluation: continue it with --resume, or choose another --output_dir."
        )
