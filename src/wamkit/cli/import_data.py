"""``wam import``: recordings in other formats become a LeRobot data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wamkit.cli.groups import names
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class ImportArguments:
    """Turn recordings into a LeRobot v3 data set: DROID, Bridge, RT-1, RLDS, LeRobot v2.1, LIBERO, or bare video."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder (or video file) to read."""
    output_dir: Path
    """Folder of the data set to write."""
    format: str = "auto"
    """Name of the importer; by default it is recognised from the files."""
    episodes: str = ""
    """Names of the episodes to import, separated by commas; by default all."""
    limit: int | None = None
    """Import at most this many episodes."""
    skip_broken: bool = False
    """Leave episodes with missing or broken files out, and list them, instead of stopping at the first."""
    fps: int | None = None
    """Rows per second, where the source does not say."""
    embodiment: str | None = None
    """Name of the embodiment, where the source does not say."""
    task: str | None = None
    """Instruction of every episode, where the source has none."""
    resume: bool = False
    """Continue an import that was interrupted; its finished episodes are kept."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ImportArguments, argv, verb="import")
    if not arguments.source.exists():
        raise WamkitError(f"{arguments.source} does not exist; name the folder that holds the recordings.")

    from wamkit.cli.progress import progress_bar
    from wamkit.data.importers import import_recording

    with progress_bar("importing") as progress:
        summary = import_recording(
            arguments.source,
            arguments.output_dir,
            format=None if arguments.format == "auto" else arguments.format,
            episodes=names(arguments.episodes) or None,
            limit=arguments.limit,
            skip_broken=arguments.skip_broken,
            resume=arguments.resume,
            fps=arguments.fps,
            embodiment=arguments.embodiment,
            task=arguments.task,
            progress=progress,
        )
    print(summary)
    return 0
