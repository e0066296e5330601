"""JSON files: a damaged one is one sentence that says what to do, and a written one is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError


def read_json(path: Path, error: type[WamkitError], mend: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        error: What is raised where there is none.
        mend: What the user can do about it; the end of the error's sentence.

    Raises:
        WamkitError: As ``error``: the file is missing or damaged, or holds no object.
    """
    try:
        return _object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({reason}): {mend}") from reason


def read_json_lines(
    path: Path, error: type[WamkitError], mend: str, *, may_be_cut: bool = False
) -> list[dict[str, Any]]:
    """The objects in a file of one JSON object a line; empty lines are passed over.

    Args:
        path: The file.
        error: See `read_json`.
        mend: See `read_json`.
        may_be_cut: The process that appended to the file may have been killed: half a line at its end is left out.

    Raises:
        WamkitError: As ``error``: the file is missing, or a line, named by its number, is damaged or no object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({reason}): {mend}") from reason
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(_object(line))
        except ValueError as reason:
            if may_be_cut and not line.endswith("\n"):  # only the last has no end
                break
            raise error(f"Line {number} of {path} cannot be read ({reason}): {mend}") from reason
    return found


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds no JSON object but a {type(value).__name__}")
    return value


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """Writes a JSON file, see `replace_text`."""
    replace_text(path, json.dumps(value, indent=indent) + "\n")


def write_json_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object a line, see `replace_text`."""
    replace_text(path, "".join(json.dumps(value) + "\n" for value in objects))


def replace_text(path: Path, text: str) -> None:
    """Writes a text file so that a reader, and whoever comes after a kill, finds the old content or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
