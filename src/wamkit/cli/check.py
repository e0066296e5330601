"""``wam check``: would this policy fit this data set or this environment? Each violation is one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wamkit.cli import UsageError
from wamkit.cli.groups import EnvFlags, OptionalDatasetFlags, OptionalEnvFlags, PolicyFlags, names, task_list
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from wamkit.data.contract import Contract
    from wamkit.envs.base import Environment
    from wamkit.inference.policy import Policy
    from wamkit.models.base import WorldActionModel


@dataclass(frozen=True)
class CheckArguments:
    """Compare a policy's contract with a data set or an environment, before any run; exit status 1 on violations."""

    policy: PolicyFlags
    dataset: OptionalDatasetFlags = OptionalDatasetFlags()
    env: OptionalEnvFlags = OptionalEnvFlags()


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(CheckArguments, argv, verb="check")
    if (arguments.dataset.root is None) == (arguments.env.type is None):
        raise UsageError("name what to check against: either --dataset.root DIR or --env.type NAME --env.task TASK.")
    tasks = task_list(arguments.env.task, arguments.env.type) if arguments.env.type is not None else ()

    from wamkit.configuration import from_dict
    from wamkit.data.contract import Contract, check
    from wamkit.data.lerobot import LeRobotSource
    from wamkit.envs.registry import instruction, make_env
    from wamkit.inference.policy import checkpoint_folder, read_config
    from wamkit.tensor_files import read_metadata
    from wamkit.training.checkpoint import WEIGHTS

    folder = checkpoint_folder(arguments.policy.path)
    name, values, rest = read_config(folder)
    if rest.get("contract") is None:
        raise WamkitError(f"{folder} holds no contract: it was not written by wam train; nothing can be checked.")
    contract = from_dict(Contract, rest["contract"], "contract")
    read_metadata(folder / WEIGHTS, WamkitError, "copy the checkpoint again, or use an earlier one.")
    violations = []
    if arguments.dataset.root is not None:
        source = LeRobotSource(arguments.dataset.root)
        violations += [str(violation) for violation in check(contract, source)]
        instructions = {episode.task for episode in source.episodes}
    else:
        instructions = {instruction(str(arguments.env.type), task) for task in tasks}
    try:
        violations += instruction_violations(model_without_weights(name, values), sorted(instructions))
    except OSError as error:  # a published tokenizer that is not on this machine
        print(
            f"instructions were not checked, the model's tokenizer cannot be loaded here: {str(error).splitlines()[0]}"
        )
    for task in tasks:
        flags = EnvFlags(type=str(arguments.env.type), task=task)
        env = make_env(flags.type, task, **fitting_env_options(contract, flags))
        violations += [f"{task}: {violation}" for violation in environment_violations(contract, env)]
    for violation in violations:
        print(violation)
    if violations:
        print(f"{len(violations)} violation{'s' if len(violations) > 1 else ''}")
        return 1
    print("no violation: the policy fits")
    return 0


def model_without_weights(name: str, values: dict[str, Any]) -> WorldActionModel:
    """The model of a checkpoint's config, to be asked what it takes; its parameters hold nothing."""
    import torch

    from wamkit.models import registry

    with torch.device("meta"):
        return registry.build(name, values)


def fitting_env_options(contract: Contract | None, flags: EnvFlags, max_steps: int | None = None) -> dict[str, Any]:
    """Keyword arguments of ``make_env``: what the flags say, else what the policy was trained on."""
    options: dict[str, Any] = {"resolution": flags.resolution or 128}
    trained_on = dict(contract.cameras) if contract is not None else {}
    if trained_on and flags.resolution is None:
        options["resolution"] = tuple(next(iter(trained_on.values())))
    if cameras := names(flags.cameras) or tuple(trained_on):
        options["cameras"] = cameras
    if max_steps is not None:
        options["max_steps"] = max_steps
    if flags.gripper:
        options["gripper"] = flags.gripper
    return options


def environment_violations(contract: Contract, env: Environment, trials: int = 4) -> list[str]:
    """Where a policy does not fit an environment, with its first pictures looked at; closes the environment."""
    import numpy as np

    from wamkit.data.contract import check

    try:
        seen = [env.reset_trial(trial) for trial in range(trials)]
        pictures = {
            camera: np.stack([observation[f"observation.images.{camera}"] for observation in seen])
            for camera in env.description.cameras
        }
        return [str(violation) for violation in check(contract, env.description, pictures)]
    finally:
        env.close()


def refuse_misfit(policy: Policy, env: Environment, instructions: Iterable[str]) -> None:
    """Act as the environment's robot, where nobody chose another; raise where that does not fit; closes it.

    Raises:
        WamkitError: With every violation, or with the choices.
    """
    robot = env.description
    policy.choose_like(robot.embodiment, robot.rate_hz)
    found = environment_violations(replace(policy.contract, bodies=(policy.body(),)), env)
    found += instruction_violations(policy.model, instructions)
    if found:
        raise WamkitError("the policy does not fit the environment: " + " ".join(found))


def instruction_violations(model: WorldActionModel, instructions: Iterable[str]) -> list[str]:
    """Instructions that the model cannot read."""
    from wamkit.encoders.byte_text import InstructionTooLong

    found = []
    for text in dict.fromkeys(instructions):
        try:
            model.check_instructions([text])
        except InstructionTooLong as error:
            found.append(f"instruction: {error}")
    return found
