"""``wam imagine``: what a world model sees coming, measured on held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamkit.cli.groups import DatasetFlags, PolicyFlags
from wamkit.cli.parsing import parse


@dataclass(frozen=True)
class ImagineArguments:
    """Measure a world model on recorded episodes: error by horizon, action dependence, probes."""

    policy: PolicyFlags
    dataset: DatasetFlags
    output_dir: Path
    """Folder for imagine.json and pictures."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ImagineArguments, argv, verb="imagine")
    raise NotImplementedError(arguments)
