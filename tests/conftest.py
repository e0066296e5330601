"""What every test shares: shape checks at run time, one thread each, no network, the real recordings."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Before torch is imported: two test processes on two cores must not start a thread pool each.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("MPLBACKEND", "Agg")

# Transformers, diffusers and LeRobot each ask at import, and each time every file of every package is looked for.
importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)

from jaxtyping import install_import_hook  # noqa: E402

# Habit 1 of the house: shapes in types on public functions, checked at run time in tests.
CHECKED_PACKAGES = ["wamkit.types", "wamkit.losses", "wamkit.nn", "wamkit.dynamics", "wamkit.actions"]
install_import_hook(CHECKED_PACKAGES, "beartype.beartype")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first: what is long then overlaps with the rest instead of coming alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real recordings; the test is skipped where it is absent."""
    location = os.environ.get("WAMKIT_TEST_DATA", "../shared/data")
    path = (REPOSITORY / location).resolve()
    if not path.is_dir():
        pytest.skip(
            f"no real recordings at {location}: set WAMKIT_TEST_DATA to the folder that holds droid/, bridge/, ..."
        )
    return path


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], ModuleType]:
    """Loads a file of ``benchmarks/`` by its name, found as when it runs alone."""

    def load(name: str) -> ModuleType:
        folder = str(REPOSITORY / "benchmarks")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load


@pytest.fixture
def last_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    """Reads the JSON that a benchmark says last, and forgets all that was said before."""
    return lambda: json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """A folder of this test alone, not created yet, for what a command writes."""
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def rendering() -> None:
    """Skips where MuJoCo or the libraries that it draws with are absent."""
    from wamkit.diagnostics import rendering_problem

    if problem := rendering_problem():
        pytest.skip(problem)
