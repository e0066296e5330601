"""``wam demo``: the whole road at laptop size, from recording to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamkit.cli.parsing import parse


@dataclass(frozen=True)
class DemoArguments:
    """Record three MetaWorld tasks, train LaWAM tiny on them, evaluate it beside control arms, write the report."""

    output_dir: Path = Path("outputs/demo")
    """Folder for recordings, checkpoints, eval.json, imagine.json and report.html."""
    seed: int = 0


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(DemoArguments, argv, verb="demo")
    raise NotImplementedError(arguments)
