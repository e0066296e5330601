"""``wam convert``: published checkpoints into wamkit's layout, and back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError, suggest

CONVERTERS = {
    "lawam": "wamkit.models.lawam.convert",
    "light_wam": "wamkit.models.light_wam.convert",
    "fast_wam": "wamkit.models.fast_wam.convert",
    "lingbot_va": "wamkit.models.lingbot_va.convert",
}
"""Model -> module with ``convert(source, destination) -> Path``; the names in the source tell which way."""


@dataclass(frozen=True)
class ConvertArguments:
    """Read a published checkpoint into wamkit's layout, or write one of ours under its published names."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Name of the model, such as lawam."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Checkpoint to read."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DESTINATION")]
    """Folder or file to write."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ConvertArguments, argv, verb="convert")
    if arguments.model not in CONVERTERS:
        raise WamkitError(f"no converter for {arguments.model!r}.{suggest(arguments.model, CONVERTERS)}")
    if not arguments.source.exists():
        raise WamkitError(f"{arguments.source} does not exist; name a checkpoint file or folder.")
    written = importlib.import_module(CONVERTERS[arguments.model]).convert(arguments.source, arguments.destination)
    print(f"wrote {written}")
    return 0
