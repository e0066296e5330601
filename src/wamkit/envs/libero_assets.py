"""Where LIBERO's tasks, initial states and meshes lie, and how to import it without a question or a download.

The package ``hf-libero`` carries tasks and initial states but no meshes. Its import asks on the terminal where to keep
its configuration unless it finds one, and makes a folder in the user's home; its first environment downloads the
meshes. Here it imports in silence and touches nothing of the user's, and absent meshes are an error that says where to
get them.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import functools
import importlib
import importlib.util
import os
import pickle
import re
import runpy
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from wamkit.envs.base import EnvError
from wamkit.envs.rendering import import_mujoco

ASSETS_VARIABLE = "WAMKIT_LIBERO_ASSETS"
"""Environment variable: folder of LIBERO's meshes and textures (``scenes/``, ``stable_hope_objects/``, ...)."""

STAND_IN_NOTE = "LIBERO with stand-in visuals"
"""Said wherever a number is shown that was measured with other meshes or textures than LIBERO's own."""

_SCANS = ("stable_scanned_objects", "stable_hope_objects", "turbosquid_objects")
_SMALLEST_SCAN = 1024  # bytes; a scanned mesh or its texture is hundreds of times larger, a box or a flat colour is not


def package_folder() -> Path:
    """The installed ``libero/libero``, found without importing it.

    Raises:
        EnvError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(place) / "libero" / "bddl_files").is_dir():
            return Path(place) / "libero"
    raise EnvError("LIBERO is not installed: pip install 'wamkit[libero]'.")


@functools.cache
def task_names() -> Mapping[str, tuple[str, ...]]:
    """Suite -> LIBERO's names of its tasks, in LIBERO's order."""
    # The file holds one dictionary. Imported as a part of its package, it would bring torch and the question along.
    found = runpy.run_path(str(package_folder() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    return {suite: tuple(names) for suite, names in found.items()}


def assets_folder() -> Path:
    """The meshes: ``WAMKIT_LIBERO_ASSETS``, else the package's own folder, else where the package downloads them to.

    Raises:
        EnvError: They are in none of these places.
    """
    if named := os.environ.get(ASSETS_VARIABLE):
        if not (Path(named) / "scenes").is_dir():
            raise EnvError(
                f"{ASSETS_VARIABLE} names {named}, which holds no scenes/: name the folder of LIBERO's assets."
            )
        return Path(named).resolve()  # robosuite takes a relative path as one within itself
    for folder in (package_folder() / "assets", Path("~/.cache/libero/assets").expanduser()):
        if (folder / "scenes").is_dir():
            return folder
    raise EnvError(
        f"LIBERO's meshes are not here: set {ASSETS_VARIABLE} to a folder that holds them, or let LIBERO's package "
        "fetch them once: python -c 'from wamkit.envs.libero_assets import fetch_assets; fetch_assets()'."
    )


def fetch_assets() -> Path:
    """Download the meshes as LIBERO's package does, into ``~/.cache/libero/assets``.

    Returns:
        Where they are.
    """
    _provide_configuration()
    return Path(importlib.import_module("libero.libero.utils.download_utils").download_assets_from_huggingface())


@contextlib.contextmanager
def named_where_missing() -> Iterator[None]:
    """Building a scene from a folder that holds only some of the meshes: says which file is missing, and what to do.

    Raises:
        EnvError: MuJoCo found no such file.
    """
    try:
        yield
    except ValueError as error:  # MuJoCo's compiler raises nothing more exact
        missing = re.search(r"[Ee]rror opening file '([^']+)'", str(error))
        if missing is None:
            raise
        raise EnvError(
            f"LIBERO's meshes in {assets_folder()} lack {missing[1]}: this folder holds a part of them. Let "
            "LIBERO's package fetch them all: python -c 'from wamkit.envs.libero_assets import fetch_assets; "
            f"fetch_assets()', and unset {ASSETS_VARIABLE}."
        ) from error


def stand_ins(assets: Path, categories: tuple[str, ...]) -> tuple[str, ...]:
    """Which visual parts of some objects are no scans but boxes or flat colours that stand in for them.

    Args:
        assets: The meshes.
        categories: LIBERO's names of kinds of objects, such as ``akita_black_bowl``.

    Returns:
        Paths relative to ``assets``, sorted.
    """
    found = []
    for category in sorted(set(categories)):
        for folder in (assets / scans / category for scans in _SCANS):
            for pattern in ("*.msh", "*.obj", "*.stl", "*.png"):
                small = (file for file in folder.rglob(pattern) if file.stat().st_size < _SMALLEST_SCAN)
                found += [file.relative_to(assets).as_posix() for file in small]
    return tuple(sorted(found))


def initial_states(suite: str, name: str) -> np.ndarray:
    """LIBERO's fixed initial states of a task, float64 [50, 1 + nq + nv]: time, positions, velocities.

    Args:
        suite: Such as ``libero_object``.
        name: LIBERO's name of the task.

    Raises:
        EnvError: The package lacks the file, or it holds something else.
    """
    path = package_folder() / "init_files" / suite / f"{name}.pruned_init"
    if not path.is_file():
        raise EnvError(f"hf-libero has no initial states of {suite}, {name}: install hf-libero 0.1.4.")
    with zipfile.ZipFile(path) as archive:
        member = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
        with archive.open(member) as file:
            states = _ArrayUnpickler(file).load()
    if not isinstance(states, np.ndarray) or states.ndim != 2:
        raise EnvError(f"{path.name} of hf-libero holds no table of states: install hf-libero 0.1.4.")
    return states


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled numpy array and nothing else, without torch, which wrote the file."""

    def find_class(self, module: str, name: str) -> Any:
        """The four names that an array is made of."""
        if name == "_reconstruct" and module.startswith("numpy.") and module.endswith("core.multiarray"):
            return getattr(importlib.import_module("numpy._core.multiarray"), name)
        allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): codecs.encode}
        if (module, name) not in allowed:
            raise EnvError(f"A file of initial states holds {module}.{name}, which no table of numbers needs.")
        return allowed[module, name]


@functools.cache
def import_libero() -> ModuleType:
    """``libero.libero.envs``, imported without a question, a message, or a file in the user's home.

    Raises:
        EnvError: LIBERO or its meshes are absent.
        RenderingError: MuJoCo cannot be imported.
    """
    package_folder()
    assets = assets_folder()
    import_mujoco()  # first: it chooses an OpenGL that works here
    _keep_robosuite_quiet()
    _provide_configuration()
    root = importlib.import_module("libero.libero")
    root.__dict__["_assets_path_cache"] = str(assets)  # otherwise it looks for them on a hub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of robosuite's logo
        return importlib.import_module("libero.libero.envs")


def _provide_configuration() -> None:
    """A configuration in a folder of this process, unless the user has one; what it says is used by nobody here."""
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH") or Path("~/.libero").expanduser())
    if (folder / "config.yaml").is_file():
        return
    folder, own = Path(tempfile.mkdtemp(prefix="wamkit-libero-")), package_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = {"benchmark_root": own, "bddl_files": own / "bddl_files", "init_states": own / "init_files"}
    paths |= {"datasets": own.parent / "datasets", "assets": own / "assets"}
    (folder / "config.yaml").write_text("".join(f"{key}: {path}\n" for key, path in paths.items()))
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)  # also for processes that this one starts


def _keep_robosuite_quiet() -> None:
    """Load robosuite's settings before robosuite does.

    It would warn that a user's own settings are absent, and override ``MUJOCO_GL`` with what may not work here.
    """
    spec = importlib.util.find_spec("robosuite")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise EnvError("robosuite is not installed: pip install 'wamkit[libero]'.")
    if "robosuite" in sys.modules:
        return
    source = importlib.util.spec_from_file_location("robosuite.macros", Path(places[0]) / "macros.py")
    assert source is not None
    assert source.loader is not None
    settings = sys.modules["robosuite.macros"] = importlib.util.module_from_spec(source)
    source.loader.exec_module(settings)
    settings.__dict__.update(MUJOCO_GPU_RENDERING=False, FILE_LOGGING_LEVEL=None)
    if not (Path(places[0]) / "macros_private.py").is_file():
        sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))
