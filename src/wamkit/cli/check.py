"""``wam check``: would this policy fit this data set or this environment? Each violation is one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wamkit.cli import UsageError
from wamkit.cli.groups import OptionalDatasetFlags, OptionalEnvFlags, PolicyFlags, checkpoint_folder, task_list
from wamkit.cli.parsing import parse


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
    folder = checkpoint_folder(arguments.policy.path)
    raise NotImplementedError((folder, task_list))
