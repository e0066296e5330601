"""Where a number comes from: hashes of checkpoint, config and code, versions, hardware, seeds, command, date.

The record names no machine and no place on it: paths are relative to the working directory (or shortened to
their last part outside of it), and neither host nor user name is kept.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError
from wamkit.evaluation.encoder_record import encoder_record

LIBRARIES = (
    "wamkit",
    "torch",
    "numpy",
    "transformers",
    "accelerate",
    "lerobot",
    "gymnasium",
    "metaworld",
    "mujoco",
    "hf-libero",
    "robosuite",
    "av",
)
"""Whose versions are part of a result; the simulator's above all (one checkpoint: 18/50 or 47/50 by MuJoCo's)."""

_ABSOLUTE = re.compile(r"(?<![\w.:/])/[^\s'\",;=:]+")
_HOST = re.compile(r"(?<=://)[^/\s:]+")


def sha256_file(path: Path) -> str:
    """The digest of one file, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _digest_of_files(files: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def checkpoint_record(path: Path) -> dict[str, Any]:
    """Digests of a checkpoint: of each file in its folder (or of the one file), and one over them all; its encoders.

    Args:
        path: A ``pretrained_model`` folder or a single file of weights.

    Raises:
        WamkitError: If nothing is there.
    """
    path = Path(path)
    if path.is_file():
        files = {path.name: sha256_file(path)}
    else:
        found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
        if not found:
            raise WamkitError(f"No checkpoint at {path}: give the folder that holds config.json and model.safetensors.")
        files = {file.relative_to(path).as_posix(): sha256_file(file) for file in found}
    record = {"path": relative_path(path), "sha256": _digest_of_files(files), "files": files}
    encoders = encoder_record(path, relative_path) if path.is_dir() else {}
    return record | ({"encoders": encoders} if encoders else {})


def config_hash(config: Any) -> str:
    """The digest of a config: a dataclass, a mapping or anything that JSON holds; key order does not count."""
    value = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def relative_path(path: Path | str, root: Path | None = None) -> str:
    """The path as seen from the working directory; outside of it only its last part, so that no machine shows."""
    root = (root or Path.cwd()).resolve()
    # The parent is resolved, not the path itself: `checkpoints/last` is a link and its name is what was asked for.
    path = Path(path)
    full = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else f".../{full.name}"


def command_line(arguments: Sequence[str] | None = None, root: Path | None = None) -> list[str]:
    """The command as given, with absolute paths made relative and host names in addresses left out.

    Args:
        arguments: As in ``sys.argv``, which is the default; the program's name loses its folder.
        root: What paths are relative to; the working directory by default.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words:
        return []
    program = Path(words[0]).name
    clean = [
        _HOST.sub("<host>", _ABSOLUTE.sub(lambda match: relative_path(match[0], root), word)) for word in words[1:]
    ]
    return [program, *clean]


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_record(package: Path | None = None) -> dict[str, Any]:
    """What code ran: the git commit and whether the tree differs from it, and the digest of the sources themselves.

    Args:
        package: Folder of the sources; wamkit's own by default.

    Returns:
        ``commit`` and ``dirty`` (both None where the sources are not under git) and ``tree_sha256``.
    """
    package = (package or Path(__file__).resolve().parents[1]).resolve()
    sources = {
        file.relative_to(package).as_posix(): sha256_file(file)
        for file in sorted(package.rglob("*.py"))
        if "__pycache__" not in file.parts
    }
    # A virtual environment may lie inside somebody else's repository: only tracked sources have a commit.
    tracked = _git(package, "ls-files", "--error-unmatch", *list(sources)[:1]) if sources else None
    commit = _git(package, "rev-parse", "HEAD") if tracked else None
    changes = _git(package, "status", "--porcelain", "--untracked-files=normal", ".") if commit else None
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "tree_sha256": _digest_of_files(sources),
    }


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, usable cores, torch's threads, memory and accelerators of this machine; not its name."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    try:
        ram = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        ram = None
    gpus: list[str] = []
    torch = sys.modules.get("torch")  # not imported for this alone: a run on an accelerator has it already
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores,
        # Sums are cut up by their number, so the last bits of a result may depend on it.
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "ram_gib": ram,
        "gpu": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def collect(
    *,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Any = None,
    seeds: Sequence[int] = (),
    arguments: Sequence[str] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The whole record, as it stands under ``provenance`` in ``eval.json`` and ``imagine.json``.

    Args:
        checkpoint: Folder or file of the weights that ran; None where there were none.
        settings: How they were used where that was not the checkpoint's own way: `wamkit.inference.settings`. They
            stand in the checkpoint's record, as what else tells one policy from another.
        config: The run's config.
        seeds: Every seed of the run.
        arguments: The command line; ``sys.argv`` by default.
        extra: Anything else worth keeping, such as ``simulator={"mujoco_gl": "egl"}``.
    """
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(arguments),
        "seeds": [int(seed) for seed in seeds],
        "code": code_record(),
        "checkpoint": None if checkpoint is None else checkpoint_record(checkpoint),
        "config_sha256": None if config is None else config_hash(config),
        "versions": versions(),
        "hardware": hardware(),
    }
    if settings:
        record["checkpoint"]["settings"] = dict(settings)
    clash = record.keys() & extra.keys()
    if clash:
        raise WamkitError(f"Provenance already records {', '.join(sorted(clash))}: give the extra field another name.")
    return record | extra
