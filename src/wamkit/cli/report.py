"""``wam report``: one self-contained HTML page from a run's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError

EXAMPLES_FILE = "imagine_examples.npz"
"""Pictures of imagined subgoals and transfers beside ``imagine.json``."""
LATENCY_FILE = "latency.json"
"""Latency by part, from `wamkit.evaluation.latency_policy.short_latency`."""


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html from a run's eval.json, imagine.json, latency.json and logs; what is absent is named there."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIRECTORY")]
    """The run's output folder."""
    output: Path | None = None
    """File to write; by default report.html in that folder."""
    title: str = ""
    """What ran; by default the folder's name."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ReportArguments, argv, verb="report")
    if not arguments.directory.is_dir():
        raise WamkitError(f"{arguments.directory} is not a folder; name a run's output folder.")
    title = arguments.title or arguments.directory.resolve().name
    print(report_on(arguments.directory, arguments.output, title))
    return 0


def report_on(directory: Path, output: Path | None = None, title: str = "", notes: Sequence[str] = ()) -> Path:
    """Writes the report of a folder that holds any of eval.json, imagine.json, latency.json and train_log.jsonl.

    Args:
        directory: The run's output folder.
        output: File to write; by default ``report.html`` in that folder.
        title: What ran.
        notes: Sentences for the top of the page.

    Raises:
        WamkitError: The folder holds none of them.
    """
    results, imagined, latency, log = (
        directory / name for name in ("eval.json", "imagine.json", LATENCY_FILE, "train_log.jsonl")
    )
    if not any(path.is_file() for path in (results, imagined, latency, log)):
        raise WamkitError(
            f"nothing to report in {directory}: run wam train, eval or imagine with that --output_dir first."
        )
    from wamkit.evaluation.report import films_from_imagine, videos_from_eval, write_report
    from wamkit.evaluation.report_figures import load_examples
    from wamkit.evaluation.results import load_eval, load_json

    evaluation = load_eval(results) if results.is_file() else None
    dreams = load_json(imagined) if imagined.is_file() else None
    examples = directory / EXAMPLES_FILE
    subgoals, transfers = load_examples(examples) if examples.is_file() else ([], [])
    return write_report(
        output or directory / "report.html",
        eval=evaluation,
        imagine=dreams,
        training_logs=log if log.is_file() else (),
        videos=videos_from_eval(evaluation, directory) if evaluation is not None else (),
        subgoals=subgoals,
        transfers=transfers,
        films=films_from_imagine(dreams, directory) if dreams is not None else (),
        latency=load_json(latency) if latency.is_file() else None,
        notes=notes,
        title=title or directory.resolve().name,
    )
