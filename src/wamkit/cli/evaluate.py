"""``wam eval``: closed-loop success with intervals, beside control arms on the same trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamkit.cli.groups import EnvFlags, PolicyFlags, checkpoint_folder, task_list
from wamkit.cli.parsing import parse


@dataclass(frozen=True)
class EvalFlags:
    """How to evaluate."""

    n_episodes: int = 20
    """Trials for each task; each has its own fixed initial state."""
    first_trial: int = 0
    """Number of the first trial: a way to keep away from initial states that were trained on."""
    n_action_steps: int | None = None
    """Actions to execute of each chunk before the next; by default all of it."""
    arms: str = "policy,no_op,random"
    """Arms separated by commas: policy, no_op, random, expert, blind, swapped_instruction."""
    batch_size: int = 8
    """Most environments that one forward pass serves; changes no result."""
    workers: int = 2
    """Simulator processes; changes no result."""
    videos: bool = True
    """Keep videos of some successes and failures for the report."""


@dataclass(frozen=True)
class EvalArguments:
    """Run a policy in a simulator and count successes, with intervals and paired tests against control arms."""

    policy: PolicyFlags
    env: EnvFlags
    output_dir: Path
    """Folder for eval.json and videos."""
    eval: EvalFlags = EvalFlags()
    seed: int = 0
    """Fixes sampled noise; initial states are fixed by task and trial."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    resume: bool = False
    """Continue an evaluation that was stopped; its finished episodes are kept."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(EvalArguments, argv, verb="eval")
    tasks = task_list(arguments.env.task)
    folder = checkpoint_folder(arguments.policy.path)
    raise NotImplementedError((tasks, folder))
