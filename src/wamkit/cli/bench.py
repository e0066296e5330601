"""``wam bench NAME``: runs one file of the checkout's ``benchmarks/`` and passes its flags on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import wamkit
from wamkit.cli import UsageError
from wamkit.errors import WamkitError, suggest


def benchmark_folder() -> Path:
    """The checkout's ``benchmarks/``.

    Raises:
        WamkitError: wamkit was installed without its checkout.
    """
    folder = Path(wamkit.__file__).resolve().parents[2] / "benchmarks"
    if not folder.is_dir():
        raise WamkitError("benchmarks are files of the checkout, not of the package: run this from a clone's .venv.")
    return folder


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    names = sorted(path.stem for path in benchmark_folder().glob("*.py") if not path.stem.startswith("_"))
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: wam bench NAME [--json] [flags of that benchmark]\n\n"
            "Measure this machine; with --json the last line is one JSON object.\n\n"
            f"benchmarks: {', '.join(names)}\n\n`wam bench NAME --help` lists its flags."
        )
        return 0
    name, *rest = argv
    if name not in names:
        raise UsageError(f"no benchmark {name!r}.{suggest(name, names)}")
    return subprocess.run([sys.executable, str(benchmark_folder() / f"{name}.py"), *rest], check=False).returncode
