"""A policy and the simulated worlds that it fits: what the verbs that run one in the other begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wamkit.cli.groups import ActingPolicyFlags, EnvFlags, task_list

if TYPE_CHECKING:
    from wamkit.evaluation.workers import EnvFactory
    from wamkit.inference.policy import Policy


@dataclass(frozen=True)
class ClosedLoop:
    """What was loaded."""

    policy: Policy
    make: EnvFactory
    instructions: dict[str, str]
    """Task -> what the policy is told."""
    record: dict[str, Any]
    """Where results come from, see `wamkit.evaluation.provenance.collect`."""


def closed_loop(
    policy: ActingPolicyFlags, env: EnvFlags, *, seed: int, device: str, runtime: bool, max_steps: int | None
) -> ClosedLoop:
    """Load a policy and see that it fits the environment.

    Raises:
        WamkitError: An unknown task, no checkpoint, or a policy that does not fit the environment.
    """
    tasks = task_list(env.task, env.type)

    from wamkit.cli.check import fitting_env_options, refuse_misfit
    from wamkit.configuration import to_dict
    from wamkit.envs.registry import instruction
    from wamkit.evaluation.provenance import collect
    from wamkit.evaluation.workers import EnvFactory
    from wamkit.inference.policy import checkpoint_folder, load

    folder: Path = checkpoint_folder(policy.path)
    instructions = {task: instruction(env.type, task) for task in tasks}
    settings = policy.inference_settings()
    loaded = load(
        folder,
        device=device,
        runtime=runtime,
        embodiment=policy.embodiment,
        rate_hz=policy.rate_hz,
        settings=settings,
    )
    make = EnvFactory(env.type, fitting_env_options(loaded.contract, env, max_steps))
    refuse_misfit(loaded, make(tasks[0]), instructions.values())
    record = collect(checkpoint=folder, settings=settings, config=to_dict(loaded.model.config), seeds=[seed])
    return ClosedLoop(loaded, make, instructions, record)
