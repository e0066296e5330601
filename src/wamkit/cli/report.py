"""``wam report``: one self-contained HTML page from a run's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html from the eval.json, imagine.json and logs of a run."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIRECTORY")]
    """The run's output folder."""
    output: Path | None = None
    """File to write; by default report.html in that folder."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ReportArguments, argv, verb="report")
    if not arguments.directory.is_dir():
        raise WamkitError(f"{arguments.directory} is not a folder; name a run's output folder.")
    raise NotImplementedError
