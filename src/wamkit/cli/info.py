"""``wam info``: which models there are, how large, what they can do, and whether this installation is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wamkit.cli.parsing import parse


@dataclass(frozen=True)
class InfoArguments:
    """List models, presets, parameter counts and capabilities, and diagnose the installation."""

    json: bool = False
    """Print one JSON object instead of tables."""


def model_facts() -> dict[str, Any]:
    """What ``wam info --json`` says under ``models``; counted on the meta device, nothing is downloaded."""
    from wamkit.models import registry

    return {name: registry.describe(name) for name in registry.model_names()}


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(InfoArguments, argv, verb="info")
    from wamkit import __version__
    from wamkit.diagnostics import diagnose

    models = model_facts()
    findings = diagnose()
    if arguments.json:
        installation = [asdict(finding) | {"ok": finding.ok} for finding in findings]
        print(json.dumps({"wamkit": __version__, "models": models, "installation": installation}, indent=2))
    else:
        _print_tables(models, findings)
    return 0


def _print_tables(models: dict[str, Any], findings: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, facts in models.items():
        table = Table(
            "preset", "parameters", "trainable", "parts", title=f"{name}: stages {' -> '.join(facts['stages'])}"
        )
        for preset, counts in facts["presets"].items():
            parts = ", ".join(f"{part} {count / 1e6:.2f}M" for part, count in counts["parts"].items())
            table.add_row(preset, f"{counts['parameters'] / 1e6:.2f}M", f"{counts['trainable'] / 1e6:.2f}M", parts)
        console.print(table)
        for capability, value in facts["capabilities"].items():
            console.print(f"  {capability}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    table = Table("installation", "found", "to mend")
    for finding in findings:
        table.add_row(finding.subject, finding.found, finding.remedy)
    console.print(table)
