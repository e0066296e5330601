from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def libero(test_data: Path) -> Path:
    """LIBERO's assets, announced to wamkit; skips where they or the package are absent."""
    from wamkit.envs.libero_assets import ASSETS_VARIABLE

    if importlib.util.find_spec("libero") is None:
        pytest.skip("hf-libero is not installed: pip install 'wamkit[libero]'")
    named = os.environ.get(ASSETS_VARIABLE)
    folder = Path(named) if named else test_data / "libero_assets"
    if not (folder / "scenes").is_dir():
        pytest.skip(f"no LIBERO meshes at {folder}: set {ASSETS_VARIABLE}")
    os.environ[ASSETS_VARIABLE] = str(folder)
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # compiling robosuite's controller takes longer than all tests
    return folder
